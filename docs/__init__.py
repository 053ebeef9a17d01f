"""Pages for people, and how `make site` makes a site of them."""
