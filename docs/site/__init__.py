"""How `make site` makes the site: pages gathered, notebooks made light, the API from docstrings, links checked."""
