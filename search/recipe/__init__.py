"""What is a run asked to do? (the recipe, and the steps, budget and cost that follow from it)"""
