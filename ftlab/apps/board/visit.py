"""The environment variables that tell the page's kernel its working folder, language and recipe."""

WORKING_FOLDER, RECIPE, LANGUAGE = "FTLAB_BOARD_FOLDER", "FTLAB_BOARD_RECIPE", "FTLAB_LANG"
# glibc gives threads arenas of their own and keeps what is freed in them. With several, the server grows at every
# visit, although it holds as many blocks as before; with one it does not. A value that the user has set stays.
ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}
