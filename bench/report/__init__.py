"""How is what a run found shown on one page? (`report/index.html`, `adapt report`)"""
