// Package oracle compares the judgements of this project with those of Google's libraries, on
// evidence of all kinds and on damaged evidence. Where they differ, the reason is listed here; a
// difference that is not, or that has gone, fails. It is a module of its own, so that no program
// links these libraries.
package oracle
