// The floor that the benchmarks compare with: what a C program without any
// library needs to start QEMU and to talk to it.
//
//   floor start FDS QEMU ARGS...
//                              spawn QEMU with descriptors, wait for the reply to query-status, then
//                              kill it; prints nanoseconds: start, kill. FDS are, with commas between,
//                              N=q the monitor, N=s another socket pair, N=l a listening socket, N=n
//                              /dev/null, N=r/FILE and N=w/FILE a file to read or to write
//   floor run PROGRAM ARGS...  time a whole process, from fork to its end; prints
//                              nanoseconds
//   floor qmp SOCKET N         N blocking query-status; prints the median
//
// Exit code 1 on any failure.
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char buf[1 << 16];

static void die(const char *what) { perror(what); exit(1); }

static long now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000L + t.tv_nsec;
}

// line reads up to the newline that ends a reply; events are skipped.
static void reply(int fd, const char *want) {
	size_t n = 0;
	for (;;) {
		ssize_t r = read(fd, buf + n, sizeof buf - 1 - n);
		if (r <= 0) die("read");
		n += r;
		buf[n] = 0;
		if (buf[n - 1] != '\n') continue;
		if (strstr(buf, want)) return;
		n = 0;
	}
}

static void command(int fd, const char *text, const char *want) {
	if (write(fd, text, strlen(text)) != (ssize_t)strlen(text)) die("write");
	reply(fd, want);
}

static void negotiate(int fd) {
	reply(fd, "QMP");
	command(fd, "{\"execute\":\"qmp_capabilities\"}\n", "return");
}

static int listening(void) {
	struct sockaddr_un any = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || bind(fd, (struct sockaddr *)&any, sizeof any.sun_family) || listen(fd, 1)) die("listen");
	return fd;
}

static int start(char *fds, char **argv) {
	enum { MOST = 64 };
	int qmp[2] = {-1, -1}, from[MOST], to[MOST], n = 0, status;
	long t0 = now();
	for (char *at = strtok(fds, ","); at && n < MOST; at = strtok(NULL, ","), n++) {
		char *kind;
		to[n] = strtol(at, &kind, 10);
		int pair[2];
		switch (kind[1]) {
		case 'q':
		case 's':
			if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) die("socketpair");
			from[n] = pair[1];
			if (kind[1] == 'q') memcpy(qmp, pair, sizeof pair);
			break;
		case 'l': from[n] = listening(); break;
		case 'n': from[n] = open("/dev/null", O_WRONLY | O_APPEND | O_CLOEXEC); break;
		case 'r': from[n] = open(kind + 2, O_RDONLY | O_CLOEXEC); break;
		case 'w': from[n] = open(kind + 2, O_RDWR | O_CLOEXEC); break;
		}
		if (from[n] < 0) die(at);
	}
	pid_t pid = vfork();
	if (pid < 0) die("vfork");
	if (pid == 0) {
		for (int i = 0; i < n; i++) from[i] = fcntl(from[i], F_DUPFD_CLOEXEC, 100);
		for (int i = 0; i < n; i++) dup2(from[i], to[i]);
		execv(argv[0], argv);
		_exit(127);
	}
	for (int i = 0; i < n; i++) close(from[i]);
	negotiate(qmp[0]);
	command(qmp[0], "{\"execute\":\"query-status\"}\n", "prelaunch");
	long t1 = now();
	kill(pid, SIGKILL);
	if (waitpid(pid, &status, 0) != pid) die("waitpid");
	long t2 = now();
	printf("%ld %ld\n", t1 - t0, t2 - t1);
	return 0;
}

static int run(char **argv) {
	int status, null = open("/dev/null", O_RDWR | O_CLOEXEC);
	long t0 = now();
	pid_t pid = vfork();
	if (pid < 0) die("vfork");
	if (pid == 0) {
		dup2(null, 1);
		dup2(null, 2);
		execv(argv[0], argv);
		_exit(127);
	}
	if (waitpid(pid, &status, 0) != pid) die("waitpid");
	printf("%ld\n", now() - t0);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

static int compare(const void *a, const void *b) {
	long x = *(const long *)a, y = *(const long *)b;
	return (x > y) - (x < y);
}

static int qmp(const char *path, int n) {
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	strncpy(addr.sun_path, path, sizeof addr.sun_path - 1);
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&addr, sizeof addr)) die("connect");
	negotiate(fd);
	long *took = calloc(n, sizeof *took);
	for (int i = 0; i < n; i++) {
		// The same bytes as any client sends that matches replies by id: QEMU
		// reads a monitor byte by byte, so every byte takes its time.
		char line[64];
		snprintf(line, sizeof line, "{\"execute\":\"query-status\",\"id\":%d}\n", i + 2);
		long t0 = now();
		command(fd, line, "return");
		took[i] = now() - t0;
	}
	qsort(took, n, sizeof *took, compare);
	printf("%ld %ld\n", took[n / 2], took[n * 99 / 100]);
	return 0;
}

int main(int argc, char **argv) {
	if (argc > 3 && !strcmp(argv[1], "start")) return start(argv[2], argv + 3);
	if (argc > 2 && !strcmp(argv[1], "run")) return run(argv + 2);
	if (argc == 4 && !strcmp(argv[1], "qmp")) return qmp(argv[2], atoi(argv[3]));
	fprintf(stderr, "usage: floor start FDS QEMU ARGS... | floor run PROGRAM ARGS... | floor qmp SOCKET N\n");
	return 2;
}
