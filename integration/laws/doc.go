// Package laws holds the rules that the whole module keeps, each of them as a
// test: what a reviewer would otherwise have to look for in every change.
package laws
