"""How-to pages, and the program that draws their pictures and those of other pages with code."""
