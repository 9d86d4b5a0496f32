"""Files: where they are kept (`places`), read with a limit (`reading`), and written whole or not at all (`writing`)."""
