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
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <linux/fs.h>

#include "../kselftest.h"
#include "uffd-wp-util.h"

#define ROW_SECONDS	60
#define WAIT_MS		15000
#define MAX_PAGES	1024
#define ROUNDS		8

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY	1
#endif

#define KPF_KSM		BIT_ULL(21)

enum memory { ANON, ANON_THP, MEMFD, SHMEM_THP, HUGETLB };

static const char * const memory_names[] = {
	[ANON]		= "anon",
	[ANON_THP]	= "anon-thp",
	[MEMFD]		= "memfd",
	[SHMEM_THP]	= "shmem-thp",
	[HUGETLB]	= "hugetlb-shared",
};

/* The memory of the row: nr pages of a size of its own */
static char *mem;
static size_t page, len;
static int nr, uffd = -1;

static char *why;	/* Shared with the parent */

/* The process of a row ends here. */
static __noreturn __printf(2, 3) void end(int status, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(why, 256, fmt, args);
	va_end(args);
	_exit(status);
}

#define fail(...)	end(KSFT_FAIL, __VA_ARGS__)
#define skip(...)	end(KSFT_SKIP, __VA_ARGS__)

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

static pthread_t start(void *(*fn)(void *), void *arg)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, fn, arg))
		fail("setup: pthread_create");
	return thread;
}

/*
 * The calls
 */

static void open_uffd(uint64_t features, int flags)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };

	uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK | flags);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
		skip("userfaultfd: %s", strerror(errno));
}

static void enlist(uint64_t mode)
{
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)mem, .len = len },
		.mode = mode,
	};

	if (ioctl(uffd, UFFDIO_REGISTER, &reg))
		fail("UFFDIO_REGISTER: %s", strerror(errno));
}

static void protect(int first, int count, bool on)
{
	struct uffdio_writeprotect wp = {
		.range = {
			.start = (uintptr_t)mem + first * page,
			.len = count * page,
		},
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	if (ioctl(uffd, UFFDIO_WRITEPROTECT, &wp))
		fail("UFFDIO_WRITEPROTECT: %s", strerror(errno));
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
	if (errno != EEXIST || ioctl(uffd, UFFDIO_WAKE, &range))
		fail("UFFDIO_COPY: %s", strerror(errno));
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
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.flags = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
		.start = (uintptr_t)mem,
		.end = (uintptr_t)mem + len,
		.vec = (uintptr_t)region,
		.vec_len = ARRAY_SIZE(region),
		.category_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};
	uint64_t at;
	int n, count;

	memset(written, 0, MAX_PAGES);
	do {
		count = ioctl(pagemap, PAGEMAP_SCAN, &arg);
		if (count < 0)
			fail("PAGEMAP_SCAN: %s", strerror(errno));
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

static void await_merge(void)
{
	uint64_t until = now_ms() + WAIT_MS;
	int i, merged;

	if (!write_file(KSM "run", "1"))
		skip("no KSM: %s", strerror(errno));
	do {
		usleep(1000);
		for (i = 0, merged = 0; i < nr; i++)
			merged += !!(page_flags(pfn_of(mem + i * page)) & KPF_KSM);
		if (now_ms() > until)
			skip("KSM merged %d of %d pages in %d ms", merged, nr, WAIT_MS);
	} while (merged < nr / 4);
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
	open_uffd(UFFD_FEATURE_PAGEFAULT_FLAG_WP, 0);
	enlist(UFFDIO_REGISTER_MODE_WP);
	protect(0, nr, true);
	await_merge();

	thread = start(vcpu, NULL);
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
	open_uffd(UFFD_FEATURE_PAGEFAULT_FLAG_WP, 0);
	enlist(UFFDIO_REGISTER_MODE_WP);
	protect(0, nr, true);
	handler = start(gc_handler, NULL);
	for (cycle = 1; cycle <= ROUNDS; cycle++) {
		for (i = 0; i < 2; i++)
			mutators[i] = start(mutator, (void *)(intptr_t)i);
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
	open_uffd(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED,
		  UFFD_USER_MODE_ONLY);
	enlist(UFFDIO_REGISTER_MODE_WP);
	protect(0, nr, true);
	for (round = 0; round < ROUNDS; round++) {
		/* commit, and have the program change the protection as well */
		if (mprotect(mem + round * part, part, PROT_READ | PROT_WRITE) ||
		    mprotect(mem, part, PROT_READ) ||
		    mprotect(mem, part, PROT_READ | PROT_WRITE))
			fail("setup: mprotect: %s", strerror(errno));
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
	open_uffd(UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_HUGETLBFS_SHMEM, 0);
	enlist(UFFDIO_REGISTER_MODE_WP);
}

static void stub(int mm, int in, int out)
{
	char round = 0;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	watch_mm();
	do {
		write_from_mm(mm, round);
	} while (write(out, &round, 1) == 1 && read(in, &round, 1) == 1);
	_exit(KSFT_PASS);
}

static void gvisor(void)
{
	int mm, i, to[NR_MMS][2], back[NR_MMS][2], pagemap[NR_MMS];
	char round, path[32], *copy;
	pid_t pid;

	for (i = 0; i < nr; i++)
		put(i, 0, 1);
	if (page * nr == pmd_size &&
	    smaps_bytes(mem, len, "ShmemPmdMapped") != len)
		skip("no huge page of shmem");
	pagemap[0] = pagemap_fd;
	for (mm = 1; mm < NR_MMS; mm++) {
		if (pipe(to[mm]) || pipe(back[mm]))
			fail("setup: pipe: %s", strerror(errno));
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
				_exit(KSFT_FAIL);
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

	open_uffd(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
		  UFFD_FEATURE_MISSING_HUGETLBFS | UFFD_FEATURE_MISSING_SHMEM, 0);
	enlist(UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
	server = start(page_server, NULL);
	for (cycle = 1; cycle <= ROUNDS; cycle++) {
		pthread_join(start(guest, NULL), NULL);
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
		if (pread(store, content, page, i * page) != (ssize_t)page)
			fail("setup: pread: %s", strerror(errno));
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
	if (store < 0 || ftruncate(store, len))
		fail("setup: memfd: %s", strerror(errno));
	open_uffd(UFFD_FEATURE_PAGEFAULT_FLAG_WP, 0);
	enlist(UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
	server = start(pager, NULL);
	for (w = 0; w < NR_WORKERS; w++)
		workers[w] = start(worker, (void *)(intptr_t)w);
	for (w = 0; w < NR_WORKERS; w++)
		pthread_join(workers[w], NULL);
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	pthread_join(server, NULL);
	for (w = 0; w < NR_WORKERS; w++)
		for (i = 0; i < nr; i++) {
			if (pread(store, &got, 8, i * page + w * 8) != 8)
				fail("setup: pread: %s", strerror(errno));
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
	enum memory memory;
	const char *mode;
	void (*run)(void);
} clients[] = {
	{ "qemu", ANON, "sync", qemu },
	{ "qemu", ANON_THP, "sync", qemu },
	{ "bdwgc", ANON, "sync", bdwgc },
	{ "wine", ANON, "async", wine },
	{ "gvisor", MEMFD, "async", gvisor },
	{ "gvisor", SHMEM_THP, "async", gvisor },
	{ "e2b", MEMFD, "sync", e2b },
	{ "e2b", HUGETLB, "sync", e2b },
	{ "umap", ANON, "sync", umap },
};

static void map_memory(enum memory memory)
{
	bool thp = memory == ANON_THP || memory == SHMEM_THP;
	size_t align = memory == HUGETLB ? huge_size : pmd_size;
	int fd = -1;

	page = memory == HUGETLB ? huge_size : page_size;
	nr = memory == HUGETLB ? 8 : thp ? pmd_size / page_size : 192;
	len = nr * page;
	if (nr > MAX_PAGES)
		skip("huge pages are too large here");
	if (memory != ANON && memory != ANON_THP) {
		fd = memfd_create("uffd-wp-clients",
				  memory == HUGETLB ? MFD_HUGETLB : 0);
		if (fd < 0 || ftruncate(fd, len))
			skip("no memfd: %s", strerror(errno));
	}
	mem = mmap(NULL, len + 2 * align, PROT_NONE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (mem == MAP_FAILED)
		fail("setup: mmap: %s", strerror(errno));
	mem = (char *)(((uintptr_t)mem + align - 1) & ~(align - 1));
	if (mmap(mem, len, PROT_READ | PROT_WRITE, MAP_FIXED |
		 (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED), fd, 0) ==
	    MAP_FAILED)
		skip("mmap: %s", strerror(errno));
	if (thp && madvise(mem, len, MADV_HUGEPAGE))
		skip("no huge pages: %s", strerror(errno));
}

static void run_row(const struct client *client)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	alarm(ROW_SECONDS);
	pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (pagemap_fd < 0)
		skip("no /proc/self/pagemap: %s", strerror(errno));
	map_memory(client->memory);
	client->run();
	end(KSFT_PASS, "right");
}

static void do_row(const struct client *client, const char *name)
{
	int status;
	pid_t pid;

	/* a kernel that dies of it cannot tell afterwards */
	ksft_print_msg("row %s\n", name);
	fflush(stdout);
	snprintf(why, 256, "hang: died, or not finished in %d s", ROW_SECONDS);
	pid = fork();
	if (!pid)
		run_row(client);
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		ksft_exit_fail_msg("fork: %s\n", strerror(errno));
	write_file(KSM "run", "0");

	if (WIFEXITED(status) && WEXITSTATUS(status) == KSFT_PASS)
		ksft_test_result_pass("%s\n", name);
	else if (WIFEXITED(status) && WEXITSTATUS(status) == KSFT_SKIP)
		ksft_test_result_skip("%s # %s\n", name, why);
	else
		ksft_test_result_fail("%s # %s\n", name, why);
}

static unsigned int each_row(const char *selection, bool run)
{
	unsigned int c, count = 0;
	char name[64];

	for (c = 0; c < ARRAY_SIZE(clients); c++) {
		snprintf(name, sizeof(name), "%s %s %s", clients[c].name,
			 memory_names[clients[c].memory], clients[c].mode);
		if (selection && !strstr(name, selection))
			continue;
		count++;
		if (run)
			do_row(&clients[c], name);
	}
	return count;
}

static void set_knobs(void)
{
	char value[32];

	set_knob(THP "enabled", "madvise");
	set_knob(THP "shmem_enabled", "advise");
	set_knob(KSM "run", "0");
	set_knob(KSM "advisor_mode", "none");
	set_knob(KSM "smart_scan", "0");
	set_knob(KSM "sleep_millisecs", "0");
	set_knob(KSM "pages_to_scan", "5000");
	snprintf(value, sizeof(value), "%ld",
		 read_long("/proc/sys/vm/nr_hugepages") + 8);
	set_knob("/proc/sys/vm/nr_hugepages", value);
}

int main(int argc, char **argv)
{
	const char *selection = argc > 1 ? argv[1] : NULL;
	unsigned int count = each_row(selection, false);

	if (!count) {
		fprintf(stderr, "%s: there is no row \"%s\"\n", argv[0], selection);
		return 2;
	}
	ksft_print_header();
	if (geteuid())
		ksft_exit_skip("needs root, for the knobs and /proc/kpageflags\n");
	find_sizes();
	kpageflags_fd = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	why = mmap(NULL, 256, PROT_READ | PROT_WRITE,
		   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (kpageflags_fd < 0 || why == MAP_FAILED)
		ksft_exit_skip("needs /proc/kpageflags\n");
	set_knobs();

	ksft_set_plan(count);
	each_row(selection, true);

	restore_knobs();
	ksft_finished();
}
