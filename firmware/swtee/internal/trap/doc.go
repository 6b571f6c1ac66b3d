// Package trap runs a program and answers some of its system calls in its place,
// by seccomp user notifications. It knows nothing about what the calls mean.
//
// The filter is installed on one OS thread of this process, from which the
// program is forked: the program needs no helper, keeps every inherited
// descriptor at its number, and dies with this process (PR_SET_PDEATHSIG).
//
// Sources: Linux, Documentation/userspace-api/seccomp_filter.rst; seccomp_unotify(2),
// ptrace(2).
package trap
