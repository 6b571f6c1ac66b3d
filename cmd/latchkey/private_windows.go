package main

import "os"

// checkPrivate leaves it to the file's access list.
func checkPrivate(*os.File) error { return nil }
