// SPDX-License-Identifier: GPL-2.0
/*
 * What uffd-wp costs, in faults and in instructions. In a guest whose clock
 * counts instructions (QEMU's -icount) both are exact: no other unit is needed,
 * and no statistics.
 *
 * Each line of the output is a row of the table: group, scenario, kind of memory,
 * whether it is registered, pages, faults, instructions. A row runs a few times,
 * each in a process of its own, and the cheapest run is told: what the others
 * have on top is a timer tick or a refilled cache of the allocators.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "uffd-wp-memory.h"
#include "uffd-wp-path.h"
#include "uffd-wp-row.h"

#define RUN_SECONDS	600
#define RUNS		7
#define PAGES		1024
#define HUGE_PAGES	8
#define TRACKED		(64UL << 20)

enum { ANON, MEMFD, SHMEM_THP, HUGETLB, FILE_BACKED, NR_KINDS };

static const char * const kind_names[] = {
	"anon", "memfd", "shmem-thp", "hugetlb-shared", "file",
};

enum group { FAULTS, TRACKING, OTHERS };

static const char * const group_names[] = { "faults", "tracking", "others" };

struct row {
	enum group group;
	const char *name;
	void (*run)(struct row *row);
	unsigned int kinds;
	int arg;
	/* of the run that goes on */
	int kind;
	bool registered;
	struct memory mem;
};

struct figures {
	long pages, faults;
	uint64_t instructions;
};

static struct figures *figures;

/*
 * Counting
 */

static uint64_t started;
static long faults_before;

/*
 * What is between 'o' and 'c' is what make profile looks at; 'e' ends a row. A NOP
 * with this displacement is nowhere else.
 */
#ifdef __x86_64__
#define mark(what)	asm volatile("nopl %c0(%%rax,%%rax)" :: "i" (0x70777500 | (what)) : "memory")
#else
#define mark(what)	do { } while (0)
#endif

/* Under -icount the time stamp counter goes up by one for each instruction. */
static uint64_t instructions(void)
{
#ifdef __x86_64__
	return __builtin_ia32_rdtsc();
#else
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC_RAW, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
#endif
}

static long faults_so_far(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_minflt + usage.ru_majflt;
}

static void start(void)
{
	/* What is touched in between must be there before. */
	memset(figures, 0, sizeof(*figures));
	instructions();
	faults_before = faults_so_far();
	mark('o');
	started = instructions();
}

static void stop(long pages)
{
	uint64_t now = instructions();

	mark('c');
	figures->instructions = now - started;
	figures->faults = faults_so_far() - faults_before;
	figures->pages = pages;
}

/*
 * Memory
 */

static void read_all(struct row *row)
{
	long i;

	for (i = 0; i < row->mem.nr; i++)
		(void)__atomic_load_n(row->mem.addr + i * row->mem.page, __ATOMIC_RELAXED);
}

static void write_some(struct row *row, long nr)
{
	long i, step = row->mem.nr / nr;

	for (i = 0; i < nr; i++)
		__atomic_store_n(row->mem.addr + i * step * row->mem.page, 1, __ATOMIC_RELAXED);
}

static void write_all(struct row *row)
{
	write_some(row, row->mem.nr);
}

static void make(struct row *row)
{
	struct memory *mem = &row->mem;

	if (!mem->len)
		mem->len = row->kind == HUGETLB ? HUGE_PAGES * huge_size :
			   row->kind == SHMEM_THP ? 2 * pmd_size : PAGES * page_size;
	map_memory(mem, PROT_READ | PROT_WRITE);
	/* The pages of a file are there before: what fills it is another matter. */
	if (mem->fd >= 0)
		fill_file(mem);
}

/*
 * userfaultfd, for those rows that are registered
 */

static void register_row(struct row *row)
{
	if (row->registered)
		arm(&row->mem, UFFD_FEATURE_WP_UNPOPULATED);
}

static void protect(struct row *row, size_t from, size_t len, bool on)
{
	if (row->registered)
		set_protection(&row->mem, from, len, on);
}

/*
 * Group "faults": what happens, from when the pages are there, and the write
 */

static void read_in(struct row *row)
{
	make(row);
	register_row(row);
	start();
	read_all(row);
	stop(row->mem.nr);
}

static void populate(struct row *row)
{
	make(row);
	register_row(row);
	if (row->arg)
		write_all(row);
	else
		read_all(row);
}

static void read_then_write(struct row *row)
{
	populate(row);
	start();
	write_all(row);
	stop(row->mem.nr);
}

static void mprotect_toggle(struct row *row)
{
	populate(row);
	start();
	mprotect_and_back(&row->mem, PROT_READ);
	write_all(row);
	stop(row->mem.nr);
}

static void protect_unprotect(struct row *row)
{
	populate(row);
	start();
	protect(row, 0, row->mem.len, true);
	protect(row, 0, row->mem.len, false);
	write_all(row);
	stop(row->mem.nr);
}

static void unregister(struct row *row)
{
	populate(row);
	start();
	if (row->registered &&
	    uffd_unregister(row->mem.uffd, row->mem.addr, row->mem.len))
		fail("UFFDIO_UNREGISTER: %s", strerror(errno));
	write_all(row);
	stop(row->mem.nr);
}

static void protect_close(struct row *row)
{
	populate(row);
	protect(row, 0, row->mem.len, true);
	start();
	if (row->registered)
		close(row->mem.uffd);
	write_all(row);
	stop(row->mem.nr);
}

static void migrate(struct row *row)
{
	need_two_nodes();
	populate(row);
	try_move_pages(&row->mem, nodes[0]);
	start();
	try_move_pages(&row->mem, nodes[1]);
	write_all(row);
	stop(row->mem.nr);
}

static void fork_once(struct row *row)
{
	int status;
	pid_t pid;

	populate(row);
	start();
	pid = fork();
	if (!pid)
		_exit(0);
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		fail("fork: %s", strerror(errno));
	write_all(row);
	stop(row->mem.nr);
}

static void async_populated(struct row *row)
{
	row->mem.mode = mode_named("async");
	populate(row);
	protect(row, 0, row->mem.len, true);
	start();
	write_all(row);
	stop(row->mem.nr);
}

static void async_untouched(struct row *row)
{
	row->mem.mode = mode_named("async");
	make(row);
	register_row(row);
	protect(row, 0, row->mem.len, true);
	start();
	write_all(row);
	stop(row->mem.nr);
}

/* One processor, and nobody else's threads on it while something is counted. */
static void set_priority(int priority)
{
	struct sched_param param = { .sched_priority = priority };

	if (sched_setscheduler(0, SCHED_FIFO, &param))
		fail("sched_setscheduler: %s", strerror(errno));
}

static void have_it_alone(void)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(0, &set);
	sched_setaffinity(0, sizeof(set), &set);
	write_text("/proc/sys/kernel/sched_rt_runtime_us", "-1");
	set_priority(1);
}

static int go[2], came[2];

static void say(int *to)
{
	if (write(to[1], "", 1) != 1)
		fail("pipe: %s", strerror(errno));
}

static void wait_for(int *from)
{
	char byte;

	if (read(from[0], &byte, 1) != 1)
		fail("pipe: %s", strerror(errno));
}

static void *writer(void *row)
{
	say(came);
	wait_for(go);
	write_all(row);
	say(came);
	return NULL;
}

/* protect, write, event, resolve: the pages one after the other */
static void event_cycle(struct row *row)
{
	struct uffd_msg msg;
	pthread_t thread;
	long i;

	if (!row->registered)
		skip("nothing is reported");
	populate(row);
	if (pipe(go) || pipe(came) || pthread_create(&thread, NULL, writer, row))
		fail("no thread");
	/* A thread that starts or ends takes faults that are not the row's. */
	wait_for(came);
	/* Where the tests poll, this one waits. */
	fcntl(row->mem.uffd, F_SETFL, 0);
	/* Each event is read at once, each page written when it is resolved. */
	set_priority(2);
	start();
	protect(row, 0, row->mem.len, true);
	say(go);
	for (i = 0; i < row->mem.nr; i++) {
		if (read(row->mem.uffd, &msg, sizeof(msg)) != sizeof(msg) ||
		    msg.event != UFFD_EVENT_PAGEFAULT)
			fail("no event");
		protect(row, (msg.arg.pagefault.address & ~(row->mem.page - 1)) -
			     (uintptr_t)row->mem.addr, row->mem.page, false);
	}
	wait_for(came);
	stop(row->mem.nr);
	pthread_join(thread, NULL);
}

/*
 * Group "tracking": a round of dirty tracking. Some of the pages are written
 * (arg: how many in a hundred); then all that were written are found, and
 * tracked anew. Told for each page that was written.
 */

static struct page_region regions[TRACKED / 4096];

static long scan_and_protect(struct row *row)
{
	struct pm_scan_arg arg =
		scan_arg(row->mem.addr, row->mem.len,
			 PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC, regions,
			 ARRAY_SIZE(regions));
	int i, n = ioctl(pagemap_fd, PAGEMAP_SCAN, &arg);
	long found = 0;

	if (n < 0)
		fail("PAGEMAP_SCAN: %s", strerror(errno));
	for (i = 0; i < n; i++)
		found += (regions[i].end - regions[i].start) / page_size;
	return found;
}

static long read_soft_dirty(struct row *row)
{
	static uint64_t entries[TRACKED / 4096];
	ssize_t n = pread(pagemap_fd, entries, row->mem.nr * 8,
			  (uintptr_t)row->mem.addr / page_size * 8);
	long i, found = 0;

	if (n != row->mem.nr * 8)
		fail("pagemap: %s", strerror(errno));
	for (i = 0; i < row->mem.nr; i++)
		found += !!(entries[i] & PM_SOFT_DIRTY);
	if (!write_text("/proc/self/clear_refs", "4"))
		fail("clear_refs: %s", strerror(errno));
	return found;
}

static long caught;

static void catch_write(int sig, siginfo_t *info, void *context)
{
	char *page = (char *)((uintptr_t)info->si_addr & ~(page_size - 1));

	(void)sig;
	(void)context;
	caught++;
	if (mprotect(page, page_size, PROT_READ | PROT_WRITE))
		_exit(1);
}

static long take_caught(struct row *row)
{
	long found = caught;

	set_prot(&row->mem, PROT_READ);
	caught = 0;
	return found;
}

static void track(struct row *row, long (*collect)(struct row *row))
{
	long nr, found;
	int round;

	row->mem.len = TRACKED;
	row->mem.mode = mode_named("async");
	make(row);
	register_row(row);
	write_all(row);
	collect(row);
	nr = row->mem.nr * row->arg / 100;
	/* The first round finds the page tables and VMAs as the setup left them. */
	for (round = 0; round < 2; round++) {
		start();
		write_some(row, nr);
		found = collect(row);
		stop(nr);
		if (found != nr)
			fail("%ld of %ld pages found", found, nr);
	}
}

static void track_wp_async(struct row *row)
{
	row->registered = true;
	track(row, scan_and_protect);
}

static void track_soft_dirty(struct row *row)
{
	track(row, read_soft_dirty);
}

static void track_mprotect(struct row *row)
{
	struct sigaction action = {
		.sa_sigaction = catch_write,
		.sa_flags = SA_SIGINFO,
	};

	sigaction(SIGSEGV, &action, NULL);
	track(row, take_caught);
}

/*
 * Group "others": those who do not use it
 */

static void fault_in(struct row *row)
{
	make(row);
	start();
	if (row->arg)
		write_all(row);
	else
		read_all(row);
	stop(row->mem.nr);
}

#define K(kind)	(1U << (kind))
#define SHARED	(K(MEMFD) | K(SHMEM_THP) | K(HUGETLB))
#define ALL	(K(ANON) | SHARED)

static const struct row rows[] = {
	{ FAULTS, "read_in", read_in, ALL, 0 },
	{ FAULTS, "read_then_write", read_then_write, ALL, 0 },
	{ FAULTS, "mprotect_clean", mprotect_toggle, ALL, 0 },
	{ FAULTS, "mprotect_dirty", mprotect_toggle, ALL, 1 },
	{ FAULTS, "protect_unprotect", protect_unprotect, ALL, 1 },
	{ FAULTS, "unregister", unregister, ALL, 1 },
	{ FAULTS, "protect_close", protect_close, ALL, 1 },
	{ FAULTS, "migrate", migrate, ALL, 1 },
	{ FAULTS, "fork_parent", fork_once, ALL, 1 },
	{ FAULTS, "async_populated", async_populated, ALL, 1 },
	{ FAULTS, "async_untouched", async_untouched, ALL, 1 },
	{ FAULTS, "event_cycle", event_cycle, ALL, 1 },

	{ TRACKING, "wp_async_1%", track_wp_async, K(ANON) | K(MEMFD), 1 },
	{ TRACKING, "wp_async_10%", track_wp_async, K(ANON) | K(MEMFD), 10 },
	{ TRACKING, "wp_async_100%", track_wp_async, K(ANON) | K(MEMFD), 100 },
	{ TRACKING, "soft_dirty_1%", track_soft_dirty, K(ANON) | K(MEMFD), 1 },
	{ TRACKING, "soft_dirty_10%", track_soft_dirty, K(ANON) | K(MEMFD), 10 },
	{ TRACKING, "soft_dirty_100%", track_soft_dirty, K(ANON) | K(MEMFD), 100 },
	{ TRACKING, "sigsegv_1%", track_mprotect, K(ANON) | K(MEMFD), 1 },
	{ TRACKING, "sigsegv_10%", track_mprotect, K(ANON) | K(MEMFD), 10 },
	{ TRACKING, "sigsegv_100%", track_mprotect, K(ANON) | K(MEMFD), 100 },

	{ OTHERS, "fault_in_read", fault_in, ALL | K(FILE_BACKED), 0 },
	{ OTHERS, "fault_in_write", fault_in, ALL | K(FILE_BACKED), 1 },
	{ OTHERS, "mprotect_toggle", mprotect_toggle, ALL | K(FILE_BACKED), 1 },
	{ OTHERS, "migrate", migrate, ALL, 1 },
	{ OTHERS, "fork", fork_once, ALL | K(FILE_BACKED), 1 },
};

static void run_once(const void *arg)
{
	struct row row = *(const struct row *)arg;

	look_at(getpid());
	start();
	row.run(&row);
}

static void run_row(const struct row *original, int kind, bool registered)
{
	struct row row = *original;
	struct figures best = { };
	int i;

	row.kind = kind;
	row.registered = registered;
	row.mem.kind = kind_named(kind_names[kind]);
	row.mem.mode = mode_named("sync");
	set_memory_knobs(row.mem.kind);
	for (i = 0; i < (row.group == TRACKING ? 4 : RUNS); i++) {
		run_process(run_once, &row, RUN_SECONDS);
		if (report->outcome == SKIP)
			return;
		if (report->outcome != PASS)
			break;
		if (!i || figures->instructions < best.instructions)
			best = *figures;
	}
	mark('e');
	printf("%s\t%s\t%s\t%s\t", group_names[row.group], row.name, kind_names[kind],
	       registered ? "registered" : "unregistered");
	if (report->outcome != PASS)
		printf("failed: %s\n", report->text);
	else
		printf("%ld\t%ld\t%llu\n", best.pages, best.faults,
		       (unsigned long long)best.instructions);
}

/* GROUP [SCENARIO [MEMORY]]: all, or these */
static bool wanted(const struct row *row, int kind, int argc, char **argv)
{
	return row->kinds & K(kind) &&
	       (argc < 2 || !strcmp(argv[1], group_names[row->group])) &&
	       (argc < 3 || !strcmp(argv[2], row->name)) &&
	       (argc < 4 || !strcmp(argv[3], kind_names[kind]));
}

static int list(void)
{
	unsigned int i;
	int kind;

	for (i = 0; i < ARRAY_SIZE(rows); i++)
		for (kind = 0; kind < NR_KINDS; kind++)
			if (rows[i].kinds & K(kind))
				printf("%s %s %s\n", group_names[rows[i].group],
				       rows[i].name, kind_names[kind]);
	return 0;
}

int main(int argc, char **argv)
{
	static char out[64 << 10];
	unsigned int i;
	int kind, registered;

	if (argc == 2 && !strcmp(argv[1], "-l"))
		return list();
	/* Told at the end: what carries it to the host would count, too. */
	setvbuf(stdout, out, _IOFBF, sizeof(out));
	find_machine();
	set_numa_knobs(false);
	figures = mmap(NULL, sizeof(*figures), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (figures == MAP_FAILED)
		return 1;
	have_it_alone();
	for (i = 0; i < ARRAY_SIZE(rows); i++)
		for (kind = 0; kind < NR_KINDS; kind++)
			for (registered = 0; registered < 2; registered++)
				if (wanted(&rows[i], kind, argc, argv) &&
				    (!registered || rows[i].group == FAULTS))
					run_row(&rows[i], kind, registered);
	return 0;
}
