"""What does a deployed detector compute?"""
