// Command empty does nothing. It takes what any Go program takes to start and to end.
package main

func main() {}
