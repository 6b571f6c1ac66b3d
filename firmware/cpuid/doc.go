// Package cpuid asks the processor what it is (Intel, SDM volume 2, CPUID; AMD, APM
// volume 3, appendix E). It asks only what its callers want: inside a virtual machine
// each question costs a trap of some microseconds, and a library that asks everything
// when it is initialised costs a tenth of a short command.
package cpuid
