"""The page: templates and what fills them; arrays come in, the contents of files go out."""
