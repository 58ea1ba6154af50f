// SPDX-License-Identifier: GPL-2.0
/*
 * The programs that write-protect memory through userfaultfd, and what each of
 * them relies on.
 *
 * A test is a row: a client x a kind of memory. It makes the client's calls in
 * the client's order, on memory of the kind that the client has, and passes if
 * what the client believes afterwards is true: that its snapshot is of one
 * moment, that the pages it takes for written are those that were written, that
 * no write has been lost.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>

#include "uffd-wp-memory.h"
#include "uffd-wp-path.h"
#include "uffd-wp-row.h"

#define MAX_PAGES	1024
#define ROUNDS		8

/* The memory of the row */
static struct memory memory;
static char *mem;
static size_t page, len;
static int nr, uffd;

/* Each page has words of its own, by the writer. */
static uint64_t *word(int i, int writer)
{
	return (uint64_t *)(mem + i * page) + writer;
}

static uint64_t get(int i, int writer)
{
	return __atomic_load_n(word(i, writer), __ATOMIC_RELAXED);
}

static void put(int i, int writer, uint64_t value)
{
	__atomic_store_n(word(i, writer), value, __ATOMIC_RELAXED);
}

/* Has the kernel write, as any system call may. */
static void put_by_kernel(int i, int writer, uint64_t value)
{
	int fd[2];

	if (pipe(fd) || write(fd[1], &value, 8) != 8 ||
	    read(fd[0], word(i, writer), 8) != 8)
		fail("content: read() into page %d: %s", i, strerror(errno));
	close(fd[0]);
	close(fd[1]);
}

/* Is page i of the set? Sets of the same size, and with no other pattern */
static bool chosen(int i, int round, int set, int of)
{
	uint32_t hash = (i + 1) * 2654435761U ^ (round + 1) * 2246822519U;

	return (hash >> 12) % of == (uint32_t)set;
}

/*
 * The calls
 */

static void open_and_register(uint64_t features, int flags, uint64_t mode)
{
	uffd = open_uffd(features, flags);
	fail_if(register_range(uffd, mem, len, mode), "UFFDIO_REGISTER");
}

static void protect(int first, int count, bool on)
{
	fail_if(protect_range(uffd, mem + first * page, count * page, on),
		"UFFDIO_WRITEPROTECT");
}

/* Puts content where there is none, and wakes who waits for it. */
static void fill(int i, const char *content, bool protected)
{
	struct uffdio_copy copy = {
		.dst = (uintptr_t)mem + i * page,
		.src = (uintptr_t)content,
		.len = page,
		.mode = protected ? UFFDIO_COPY_MODE_WP : 0,
	};

	struct uffdio_range range = { .start = copy.dst, .len = page };

	if (!ioctl(uffd, UFFDIO_COPY, &copy))
		return;
	/* Two threads may wait for the same page. */
	fail_if(errno != EEXIST || ioctl(uffd, UFFDIO_WAKE, &range), "UFFDIO_COPY");
}

/* The page of the next event and its flags; -1 if there is none in @ms. */
static int next_event(int ms, uint64_t *flags)
{
	struct pollfd fd = { .fd = uffd, .events = POLLIN };
	struct uffd_msg msg;

	if (poll(&fd, 1, ms) <= 0 || read(uffd, &msg, sizeof(msg)) != sizeof(msg))
		return -1;
	if (msg.event != UFFD_EVENT_PAGEFAULT)
		fail("event: of kind %#x", msg.event);
	*flags = msg.arg.pagefault.flags;
	return (msg.arg.pagefault.address - (uintptr_t)mem) / page;
}

/* Which pages were written, by the page tables of whose @pagemap it is? */
static void scan(int pagemap, bool *written)
{
	struct page_region region[16];
	struct pm_scan_arg arg =
		scan_arg(mem, len, PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
			 region, ARRAY_SIZE(region));
	uint64_t at;
	int n, count;

	memset(written, 0, MAX_PAGES);
	do {
		count = ioctl(pagemap, PAGEMAP_SCAN, &arg);
		fail_if(count < 0, "PAGEMAP_SCAN");
		for (n = 0; n < count; n++)
			for (at = region[n].start; at < region[n].end; at += page)
				written[(at - (uintptr_t)mem) / page] = true;
		arg.start = arg.walk_end;
	} while (arg.start < arg.end);
}

/* What a client takes for written, against what was written */
static void compare(const char *whose, int round, const bool *got,
		    const bool *want)
{
	int i, lost = 0, spurious = 0;

	for (i = 0; i < nr; i++) {
		lost += want[i] && !got[i];
		spurious += got[i] && !want[i];
	}
	if (lost || spurious)
		fail("%s: round %d: %s%d writes not reported, %d reported that were none",
		     lost ? "lost" : "spurious", round, whose, lost, spurious);
}

/*
 * QEMU, background-snapshot: the RAM is read in and protected; each write of a
 * vCPU waits until its page is saved. RAM is mergeable by default, and what
 * the snapshot goes to may be slow.
 */

static void *vcpu(void *unused)
{
	int i;

	for (i = 0; i < nr; i++)
		put(i, 0, 2);
	return NULL;
}

static void qemu(void)
{
	int i, lost = 0, events[MAX_PAGES] = {};
	uint64_t flags;
	pthread_t thread;

	if (madvise(mem, len, MADV_MERGEABLE))
		skip("no KSM: %s", strerror(errno));
	for (i = 0; i < nr; i++) {
		if (i % 2)
			put(i, 0, 1);	/* the other half was never used */
		else
			get(i, 0);
	}
	open_and_register(UFFD_FEATURE_PAGEFAULT_FLAG_WP, 0, UFFDIO_REGISTER_MODE_WP);
	protect(0, nr, true);
	ksm_merge(&memory, nr / 4, false);

	thread = start_thread(vcpu, NULL);
	while (pthread_tryjoin_np(thread, NULL)) {
		i = next_event(1, &flags);
		if (i < 0)
			continue;
		if (!(flags & UFFD_PAGEFAULT_FLAG_WP) || events[i]++)
			fail("event: page %d: wrong, or one too many", i);
		if (get(i, 0) != (uint64_t)i % 2)
			fail("content: page %d was written before it was saved", i);
		protect(i, 1, false);
	}
	for (i = 0; i < nr; i++)
		lost += !events[i];
	if (lost)
		fail("lost: %d of %d pages were not saved before they were written",
		     lost, nr);
}

/*
 * bdwgc, incremental collection: a handler notes each page whose event comes
 * as dirty. To collect, the world is stopped; then what is dirty is protected
 * again, in runs that pass over the ends of VMAs. System calls write as well.
 */

static bool dirty[MAX_PAGES], want[MAX_PAGES];
static int cycle;
static bool stop;

static void *gc_handler(void *unused)
{
	uint64_t flags;
	int i;

	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		i = next_event(1, &flags);
		if (i < 0)
			continue;
		dirty[i] = true;
		protect(i, 1, false);
	}
	return NULL;
}

static bool at_end_of_vma(int i)
{
	return i == nr / 3 || i == nr / 3 - 1;
}

static bool mutates(int i, int set)
{
	return chosen(i, cycle, set, 3) || (at_end_of_vma(i) && set == i % 2);
}

static void *mutator(void *arg)
{
	int i, set = (intptr_t)arg;

	for (i = 0; i < nr; i++) {
		if (!mutates(i, set))
			continue;
		if (i % 4 == set)
			put_by_kernel(i, set, cycle);
		else
			put(i, set, cycle);
	}
	return NULL;
}

static void bdwgc(void)
{
	pthread_t handler, mutators[2];
	int i, first;

	if (madvise(mem + nr / 3 * page, nr / 3 * page, MADV_DONTFORK))
		fail("setup: MADV_DONTFORK: %s", strerror(errno));
	if (count_vmas(mem, len) != 3)
		fail("setup: not three VMAs");
	for (i = 0; i < nr; i++)
		put(i, 0, 0);
	open_and_register(UFFD_FEATURE_PAGEFAULT_FLAG_WP, 0, UFFDIO_REGISTER_MODE_WP);
	protect(0, nr, true);
	handler = start_thread(gc_handler, NULL);
	for (cycle = 1; cycle <= ROUNDS; cycle++) {
		for (i = 0; i < 2; i++)
			mutators[i] = start_thread(mutator, (void *)(intptr_t)i);
		for (i = 0; i < 2; i++)
			pthread_join(mutators[i], NULL);
		for (i = 0; i < nr; i++)
			want[i] = mutates(i, 0) || mutates(i, 1);
		compare("", cycle, dirty, want);
		for (first = 0, i = 0; i <= nr; i++) {
			if (i < nr && dirty[i])
				continue;
			if (i > first)
				protect(first, i - first, true);
			first = i + 1;
		}
		memset(dirty, 0, sizeof(dirty));
	}
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	pthread_join(handler, NULL);
}

/*
 * Wine, write watches: memory is reserved, watched, and then committed piece by
 * piece. GetWriteWatch() is PAGEMAP_SCAN, which also resets. Nothing but the
 * protection of PTEs tells, for pages that were never touched as well.
 */

static void wine(void)
{
	size_t part = len / ROUNDS;
	int i, round;

	if (mprotect(mem, len, PROT_NONE) || madvise(mem, len, MADV_NOHUGEPAGE))
		fail("setup: %s", strerror(errno));
	open_and_register(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED,
			  UFFD_USER_MODE_ONLY, UFFDIO_REGISTER_MODE_WP);
	protect(0, nr, true);
	for (round = 0; round < ROUNDS; round++) {
		/* commit, and have the program change the protection as well */
		fail_if(mprotect(mem + round * part, part, PROT_READ | PROT_WRITE) ||
			mprotect(mem, part, PROT_READ) ||
			mprotect(mem, part, PROT_READ | PROT_WRITE), "mprotect");
		for (i = 0; i < (int)((round + 1) * part / page); i++) {
			want[i] = chosen(i, round, 0, 3);
			if (!want[i])
				get(i, 0);
			else if (i % 4)
				put(i, 0, round);
			else
				put_by_kernel(i, 0, round);
		}
		scan(pagemap_fd, dirty);
		compare("", round, dirty, want);
	}
}

/*
 * gVisor: the memory of a sandbox is one memfd that three processes map. Each
 * watches its own mapping; one of them scans the page tables of all, and copies
 * what any of them has written.
 */

#define NR_MMS	3

static void write_from_mm(int mm, int round)
{
	int i;

	for (i = 0; i < nr; i++) {
		if (chosen(i, round, mm, 4))
			put(i, mm, round);
		else
			get(i, mm);
	}
}

static void watch_mm(void)
{
	open_and_register(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_HUGETLBFS_SHMEM, 0,
			  UFFDIO_REGISTER_MODE_WP);
}

static void stub(int mm, int in, int out)
{
	char round = 0;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	watch_mm();
	do {
		write_from_mm(mm, round);
	} while (write(out, &round, 1) == 1 && read(in, &round, 1) == 1);
	_exit(0);
}

static void gvisor(void)
{
	int mm, i, to[NR_MMS][2], back[NR_MMS][2], pagemap[NR_MMS];
	char round, path[32], *copy;
	pid_t pid;

	for (i = 0; i < nr; i++)
		put(i, 0, 1);
	prove_mapping(&memory);
	pagemap[0] = pagemap_fd;
	for (mm = 1; mm < NR_MMS; mm++) {
		fail_if(pipe(to[mm]) || pipe(back[mm]), "pipe");
		pid = fork();
		if (!pid) {
			close(back[mm][0]);
			stub(mm, to[mm][0], back[mm][1]);
		}
		close(back[mm][1]);
		snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
		pagemap[mm] = open(path, O_RDONLY | O_CLOEXEC);
		if (pid < 0 || pagemap[mm] < 0)
			fail("setup: %s: %s", path, strerror(errno));
	}
	watch_mm();
	copy = malloc(len);
	for (round = 0; round <= ROUNDS; round++) {
		write_from_mm(0, round);
		for (mm = 0; mm < NR_MMS; mm++) {
			/* A process that has failed has said why. */
			if (mm && ((round && write(to[mm][1], &round, 1) != 1) ||
				   read(back[mm][0], path, 1) != 1))
				_exit(1);
			scan(pagemap[mm], dirty);
			for (i = 0; i < nr; i++) {
				want[i] = chosen(i, round, mm, 4);
				if (dirty[i])
					memcpy(copy + i * page, word(i, 0), page);
			}
			/* At first nothing is protected: all counts as written. */
			snprintf(path, sizeof(path), "process %d: ", mm);
			if (round)
				compare(path, round, dirty, want);
		}
	}
	if (memcmp(copy, mem, len))
		fail("lost: the copy is not what the memory holds");
}

/*
 * e2b's Firecracker: memory comes in from an old snapshot when it is touched,
 * protected if it was only read. What is dirty is what is there without bit 57
 * of /proc/PID/pagemap; after that, everything is protected for the next time.
 */

static void backing(int i, char *content)
{
	memset(content, 0, page);
	*(uint64_t *)content = i + 1;
}

static void *page_server(void *unused)
{
	char *content = aligned_alloc(page, page);
	uint64_t flags;
	int i;

	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		i = next_event(1, &flags);
		if (i < 0)
			continue;
		if (flags & UFFD_PAGEFAULT_FLAG_WP) {
			protect(i, 1, false);
			continue;
		}
		backing(i, content);
		fill(i, content, !(flags & UFFD_PAGEFAULT_FLAG_WRITE));
	}
	return NULL;
}

enum { LEAVE, READ, WRITE, READ_WRITE, NR_ACCESSES };

static int access_of(int i)
{
	return (i + cycle * (1 + i / NR_ACCESSES % 2)) % NR_ACCESSES;
}

static void *guest(void *unused)
{
	int i;

	for (i = 0; i < nr; i++) {
		if (access_of(i) & READ && get(i, 0) != (uint64_t)i + 1)
			fail("content: page %d is not as it was", i);
		if (access_of(i) & WRITE)
			put(i, 1, cycle);
	}
	return NULL;
}

static void e2b(void)
{
	uint64_t entry, last[MAX_PAGES] = {};
	pthread_t server;
	int i;

	open_and_register(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
			  UFFD_FEATURE_MISSING_HUGETLBFS | UFFD_FEATURE_MISSING_SHMEM, 0,
			  UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
	server = start_thread(page_server, NULL);
	for (cycle = 1; cycle <= ROUNDS; cycle++) {
		pthread_join(start_thread(guest, NULL), NULL);
		for (i = 0; i < nr; i++) {
			entry = pagemap_entry(mem + i * page);
			want[i] = access_of(i) & WRITE;
			dirty[i] = entry & PM_PRESENT && !(entry & PM_UFFD_WP);
			if (access_of(i) != LEAVE && !(entry & PM_PRESENT))
				fail("content: page %d is not there", i);
			if (want[i])
				last[i] = cycle;
		}
		compare("", cycle, dirty, want);
		protect(0, nr, true);
	}
	for (i = 0; i < nr; i++)
		if (get(i, 0) != (uint64_t)i + 1 || get(i, 1) != last[i])
			fail("content: page %d has lost a write", i);
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	pthread_join(server, NULL);
}

/*
 * umap: a file's content in anonymous memory that holds only a few of its
 * pages. A page comes in protected, so that its first write is noticed; to make
 * room, one that was written is protected, written back, and dropped.
 */

#define ROOM		(nr / 8)
#define NR_WORKERS	2
#define WRITES		400

static int store;
static uint64_t written[NR_WORKERS][MAX_PAGES];

static void evict(int i)
{
	if (dirty[i]) {
		protect(i, 1, true);
		if (pwrite(store, mem + i * page, page, i * page) != (ssize_t)page)
			fail("setup: pwrite: %s", strerror(errno));
		dirty[i] = false;
	}
	madvise(mem + i * page, page, MADV_DONTNEED);
}

static void *pager(void *unused)
{
	char *content = aligned_alloc(page, page);
	int i, n, held[MAX_PAGES], count = 0, oldest = 0;
	bool present[MAX_PAGES] = {};
	uint64_t flags;

	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		i = next_event(1, &flags);
		if (i < 0)
			continue;
		if (flags & UFFD_PAGEFAULT_FLAG_WP) {
			/* or it was dropped meanwhile: the writer comes again */
			dirty[i] = present[i];
			protect(i, 1, false);
			continue;
		}
		if (!present[i]) {
			n = count < ROOM ? count++ : oldest++ % ROOM;
			if (oldest) {
				evict(held[n]);
				present[held[n]] = false;
			}
			held[n] = i;
			present[i] = true;
		}
		fail_if(pread(store, content, page, i * page) != (ssize_t)page, "pread");
		fill(i, content, true);
	}
	for (n = 0; n < count; n++)
		evict(held[n]);
	return NULL;
}

static void *worker(void *arg)
{
	int i, n, me = (intptr_t)arg;
	unsigned int seed = me + 1;

	for (n = 0; n < WRITES; n++) {
		i = rand_r(&seed) % nr;
		put(i, me, get(i, me) + 1);
		written[me][i]++;
	}
	return NULL;
}

static void umap(void)
{
	pthread_t server, workers[NR_WORKERS];
	uint64_t got;
	int i, w, lost = 0;

	store = memfd_create("uffd-wp-clients", MFD_CLOEXEC);
	fail_if(store < 0 || ftruncate(store, len), "memfd");
	open_and_register(UFFD_FEATURE_PAGEFAULT_FLAG_WP, 0,
			  UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
	server = start_thread(pager, NULL);
	for (w = 0; w < NR_WORKERS; w++)
		workers[w] = start_thread(worker, (void *)(intptr_t)w);
	for (w = 0; w < NR_WORKERS; w++)
		pthread_join(workers[w], NULL);
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	pthread_join(server, NULL);
	for (w = 0; w < NR_WORKERS; w++)
		for (i = 0; i < nr; i++) {
			fail_if(pread(store, &got, 8, i * page + w * 8) != 8, "pread");
			lost += written[w][i] - got;
		}
	if (lost)
		fail("lost: %d of %d writes are not in the file", lost,
		     NR_WORKERS * WRITES);
}

/*
 * The rows
 */

static const struct client {
	const char *name;
	const char *memory;
	void (*run)(void);
} clients[] = {
	{ "qemu anon sync", "anon", qemu },
	{ "qemu anon-thp sync", "anon-thp", qemu },
	{ "bdwgc anon sync", "anon", bdwgc },
	{ "wine anon async", "anon", wine },
	{ "gvisor memfd async", "memfd", gvisor },
	{ "gvisor shmem-thp async", "shmem-thp", gvisor },
	{ "e2b memfd sync", "memfd", e2b },
	{ "e2b hugetlb-shared sync", "hugetlb-shared", e2b },
	{ "umap anon sync", "anon", umap },
};

static void run_row(const struct row_id *id)
{
	const struct client *client = id->of[0];

	memory.kind = kind_named(client->memory);
	memory.len = memory.kind->flags & M_HUGETLB ? 8 * huge_size :
		     memory.kind->flags & M_THP ? pmd_size : 192 * page_size;
	look_at(getpid());
	map_memory(&memory, PROT_READ | PROT_WRITE);
	mem = memory.addr;
	page = memory.page;
	len = memory.len;
	nr = memory.nr;
	if (nr > MAX_PAGES)
		skip("huge pages are too large here");
	step("calls");
	client->run();
}

static void set_knobs(const struct row_id *id)
{
	const struct client *client = id->of[0];

	set_memory_knobs(kind_named(client->memory));
	set_ksm_knobs(false);
}

static const struct test test = {
	.tables = { TABLE(clients) },
	.seconds = 60,
	.setup = find_machine,
	.set_knobs = set_knobs,
	.run = run_row,
};

int main(int argc, char **argv)
{
	return run_test(&test, argc, argv);
}
