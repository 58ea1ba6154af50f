// SPDX-License-Identifier: GPL-2.0
/*
 * Each kind of memory of the uffd-wp tests: mapped, proved to be what it is called,
 * registered and protected.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <linux/magic.h>

#include "hugepage_settings.h"
#include "uffd-wp-memory.h"
#include "uffd-wp-row.h"

#define FREE_HUGE_PAGES	10	/* on each node, to hold a row and to move it */

size_t page_size, huge_size, pmd_size;
int nr_nodes, nodes[2], node_cpu[2];
uint64_t uffd_features;
int pagemap_fd = -1;

static size_t mthp_size;
static int kpageflags_fd = -1;

/*
 * The machine
 */

static void find_nodes(void)
{
	char path[64], buf[4 << 10], *total;
	int node;

	for (node = 0; node < 1024 && nr_nodes < 2; node++) {
		snprintf(path, sizeof(path), NODES "node%d/meminfo", node);
		if (read_text(path, buf, sizeof(buf)) < 0)
			continue;
		total = strstr(buf, "MemTotal:");
		if (!total || !atol(total + strlen("MemTotal:")))
			continue;
		snprintf(path, sizeof(path), NODES "node%d/cpulist", node);
		if (read_text(path, buf, sizeof(buf)) < 0 || buf[0] == '\n')
			continue;
		node_cpu[nr_nodes] = atoi(buf);
		nodes[nr_nodes++] = node;
	}
}

void find_machine(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	int fd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api))
		ksft_exit_skip("no userfaultfd: %s\n", strerror(errno));
	close(fd);
	uffd_features = api.features;
	page_size = getpagesize();
	pmd_size = read_pmd_pagesize() ?: page_size * (page_size / 8);
	huge_size = default_huge_page_size() ?: pmd_size;
	mthp_size = 16 * page_size;
	find_nodes();
	kpageflags_fd = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	if (kpageflags_fd < 0)
		ksft_exit_skip("needs /proc/kpageflags: %s\n", strerror(errno));
}

/*
 * Kinds and modes
 */

static const struct kind kinds[] = {
	{ "anon",		M_PRIVATE | M_ANON },
	{ "shared-anon",	0 },
	{ "memfd",		M_FD },
	{ "memfd-private-cow",	M_PRIVATE | M_ANON | M_FD },
	{ "memfd-private",	M_PRIVATE | M_FD },
	{ "tmpfs",		M_FD | M_TMPFS },
	{ "anon-thp",		M_PRIVATE | M_ANON | M_THP },
	{ "shmem-thp",		M_FD | M_THP },
	{ "anon-mthp",		M_PRIVATE | M_ANON | M_MTHP },
	{ "shmem-mthp",		M_FD | M_MTHP },
	{ "hugetlb-shared",	M_FD | M_HUGETLB },
	{ "hugetlb-private",	M_PRIVATE | M_ANON | M_FD | M_HUGETLB },
	{ "hugetlb-anon",	M_PRIVATE | M_ANON | M_HUGETLB },
	{ "file",		M_FD | M_DISK },
	{ "file-private-cow",	M_PRIVATE | M_ANON | M_FD | M_DISK },
	{ "file-private",	M_PRIVATE | M_FD | M_DISK },
};

static const struct mode modes[] = {
	{ .name = "sync", .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP },
	{ .name = "async", .async = true,
	  .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_ASYNC },
	{ .name = "unpop", .unpop = true,
	  .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_UNPOPULATED },
	{ .name = "unpop-async", .async = true, .unpop = true,
	  .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_ASYNC },
	{ .name = "scan", .async = true, .scan = true,
	  .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_ASYNC },
	{ .name = "rwp", .rwp = true, .features = UFFD_FEATURE_RWP },
};

const struct kind *kind_named(const char *name)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(kinds); i++)
		if (!strcmp(kinds[i].name, name))
			return &kinds[i];
	ksft_exit_fail_msg("no kind of memory is called %s\n", name);
}

const struct mode *mode_named(const char *name)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(modes); i++)
		if (!strcmp(modes[i].name, name))
			return &modes[i];
	ksft_exit_fail_msg("no mode is called %s\n", name);
}

static void set_thp_size(size_t size, bool on)
{
	char path[128];

	snprintf(path, sizeof(path), THP "hugepages-%zukB/enabled", size >> 10);
	set_knob(path, on ? "madvise" : "never");
	snprintf(path, sizeof(path), THP "hugepages-%zukB/shmem_enabled", size >> 10);
	set_knob(path, on ? "advise" : "never");
}

static void set_hugetlb(void)
{
	char dir[64], path[128], value[32];
	long nr, nr_free;
	int i;

	for (i = 0; i < nr_nodes || !i; i++) {
		snprintf(dir, sizeof(dir), NODES "node%d/hugepages", nodes[i]);
		if (!nr_nodes)
			snprintf(dir, sizeof(dir), "/sys/kernel/mm/hugepages");
		snprintf(path, sizeof(path), "%s/hugepages-%zukB/free_hugepages",
			 dir, huge_size >> 10);
		nr_free = read_long(path);
		snprintf(path, sizeof(path), "%s/hugepages-%zukB/nr_hugepages",
			 dir, huge_size >> 10);
		nr = read_long(path);
		if (nr < 0 || nr_free >= FREE_HUGE_PAGES)
			continue;
		snprintf(value, sizeof(value), "%ld", nr + FREE_HUGE_PAGES - nr_free);
		set_knob(path, value);
	}
}

void set_memory_knobs(const struct kind *kind)
{
	/*
	 * Older kernels have only these two. What does not ask for huge pages gets
	 * none; each change of such a knob stops or starts khugepaged, and is slow.
	 */
	set_knob(THP "enabled", "madvise");
	set_knob(THP "shmem_enabled", "advise");
	if (kind->flags & M_LARGE) {
		set_thp_size(pmd_size, kind->flags & M_THP);
		set_thp_size(mthp_size, kind->flags & M_MTHP);
	}
	if (kind->flags & M_HUGETLB)
		set_hugetlb();
}

/*
 * Mapping
 */

/* Where there is no folio of several sizes, a huge page that is mapped by PTEs */
static bool is_split(const struct memory *mem)
{
	return mem->kind->flags & M_MTHP && mem->folio == pmd_size;
}

static bool has_mthp(void)
{
	char path[128];

	snprintf(path, sizeof(path), THP "hugepages-%zukB", mthp_size >> 10);
	return !access(path, F_OK);
}

static int tmpfs_file(void)
{
	static const char * const dirs[] = { "/tmp", "/dev/shm", "/run", "/var/tmp" };
	struct statfs fs;
	unsigned int i;
	int fd;

	for (i = 0; i < ARRAY_SIZE(dirs); i++) {
		if (statfs(dirs[i], &fs) || fs.f_type != TMPFS_MAGIC)
			continue;
		fd = open(dirs[i], O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
		if (fd >= 0)
			return fd;
	}
	skip("no writable tmpfs at /tmp, /dev/shm, /run or /var/tmp");
}

static int disk_file(void)
{
	struct statfs fs;

	if (statfs(".", &fs) || fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC)
		skip("the current directory is not on a disk filesystem");
	return open(".", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600);
}

static int open_file(const struct memory *mem)
{
	unsigned int flags = mem->kind->flags;
	int fd;

	if (flags & M_TMPFS)
		fd = tmpfs_file();
	else if (flags & M_DISK)
		fd = disk_file();
	else
		fd = memfd_create("uffd-wp", flags & M_HUGETLB ? MFD_HUGETLB : 0);
	if (fd < 0 || ftruncate(fd, mem->file_len))
		skip("no file for %s: %s", mem->kind->name, strerror(errno));
	return fd;
}

static size_t max_align(void)
{
	return pmd_size > huge_size ? pmd_size : huge_size;
}

char *reserve(size_t len)
{
	size_t align = max_align();
	char *addr = mmap(NULL, 3 * len + 2 * align, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (addr == MAP_FAILED)
		fail("setup: no address range for %zu bytes", len);
	return (char *)(((uintptr_t)addr + len + align) & ~(align - 1));
}

static void map_at(const struct memory *mem, char *addr, size_t len, int prot)
{
	unsigned int flags = mem->kind->flags;

	if (mmap(addr, len, prot, MAP_FIXED | (mem->fd < 0 ? MAP_ANONYMOUS : 0) |
		 (mem->fd < 0 && flags & M_HUGETLB ? MAP_HUGETLB : 0) |
		 (flags & M_PRIVATE ? MAP_PRIVATE : MAP_SHARED), mem->fd, 0) ==
	    MAP_FAILED) {
		if (flags & M_HUGETLB)
			again("not enough huge pages: %s", strerror(errno));
		fail("setup: mmap of %s: %s", mem->kind->name, strerror(errno));
	}
	if (flags & M_LARGE && madvise(addr, len, MADV_HUGEPAGE))
		skip("no transparent huge pages: %s", strerror(errno));
}

/* With a hole at both ends, the second as long as the mapping */
void map_memory(struct memory *mem, int prot)
{
	unsigned int flags = mem->kind->flags;
	bool split = flags & M_MTHP && !has_mthp();

	mem->page = flags & M_HUGETLB ? huge_size : page_size;
	mem->folio = flags & M_THP || split ? pmd_size :
		     flags & M_MTHP ? mthp_size : mem->page;
	if (!mem->unit)
		mem->unit = mem->page;
	mem->nr = mem->len / mem->unit;
	mem->map_len = split && flags & M_ANON ? pmd_size : mem->len;
	if (!mem->file_len)
		mem->file_len = split ? pmd_size : mem->len;
	mem->fd = flags & M_FD ? open_file(mem) : -1;
	mem->uffd = -1;
	mem->addr = reserve(mem->map_len);
	munmap(mem->addr - page_size, page_size);
	munmap(mem->addr + mem->map_len, mem->map_len);
	/* where it cannot be mapped by a PMD */
	if (split && !(flags & M_ANON))
		mem->addr += mthp_size;
	map_at(mem, mem->addr, mem->map_len, prot);
}

/* Its pages are small, and have been written out. */
static void fill_disk_file(const struct memory *mem)
{
	size_t at;

	for (at = 0; at < mem->len; at += page_size)
		fail_if(pwrite(mem->fd, "x", 1, at) != 1, "write to the file");
	fail_if(fsync(mem->fd), "fsync");
}

/*
 * A large folio of shmem must be in the page cache first: into a VMA that is
 * registered, older kernels put small ones. Another view leaves the tested one
 * untouched.
 */
void fill_file(const struct memory *mem)
{
	size_t len = is_split(mem) ? pmd_size : mem->len, at;
	char *view;

	if (mem->kind->flags & M_DISK) {
		fill_disk_file(mem);
		return;
	}
	view = reserve(len);
	map_at(mem, view, len, PROT_READ | PROT_WRITE);
	for (at = 0; at < len; at += mem->page)
		__atomic_store_n(view + at, 1, __ATOMIC_RELAXED);
	if ((mem->kind->flags & M_THP || is_split(mem)) &&
	    smaps_bytes(view, len, "ShmemPmdMapped") != len)
		again("shmem gave no PMD-mapped folio");
	munmap(view, len);
}

void prove_page(const struct memory *mem, const char *addr)
{
	const uint64_t compound = KPF_COMPOUND_HEAD | KPF_COMPOUND_TAIL;
	unsigned int flags = mem->kind->flags;
	uint64_t kpf, pfn = pfn_of(addr);
	size_t at = addr - mem->addr;

	if (!pfn)
		again("the page at %#zx is not present", at);
	kpf = page_flags(pfn);
	if (!!(flags & M_ANON) != !!(kpf & KPF_ANON))
		fail("setup: the page at %#zx is %sanonymous", at,
		     flags & M_ANON ? "not " : "");
	if (!!(flags & M_HUGETLB) != !!(kpf & KPF_HUGE))
		fail("setup: the page at %#zx is %shugetlb", at,
		     flags & M_HUGETLB ? "not " : "");
	if (flags & M_LARGE && !(kpf & compound))
		again("the page at %#zx is not of a large folio", at);
	if (!(flags & (M_LARGE | M_HUGETLB)) && kpf & compound)
		again("the page at %#zx is of a large folio", at);
}

void prove_mapping(const struct memory *mem)
{
	const char *key = mem->kind->flags & M_ANON ? "AnonHugePages" :
						      "ShmemPmdMapped";
	size_t by_pmds;

	if (!(mem->kind->flags & M_LARGE))
		return;
	by_pmds = smaps_bytes(mem->addr, mem->map_len, key);
	if (by_pmds != (mem->kind->flags & M_THP ? mem->map_len : 0))
		again("%zu bytes of %zu are mapped by PMDs", by_pmds, mem->map_len);
}

/*
 * userfaultfd
 */

static const struct {
	uint64_t bit;
	const char *name;
} feature_names[] = {
	{ UFFD_FEATURE_PAGEFAULT_FLAG_WP, "PAGEFAULT_FLAG_WP" },
	{ UFFD_FEATURE_EVENT_FORK, "EVENT_FORK" },
	{ UFFD_FEATURE_EVENT_REMAP, "EVENT_REMAP" },
	{ UFFD_FEATURE_MISSING_HUGETLBFS, "MISSING_HUGETLBFS" },
	{ UFFD_FEATURE_MISSING_SHMEM, "MISSING_SHMEM" },
	{ UFFD_FEATURE_MINOR_HUGETLBFS, "MINOR_HUGETLBFS" },
	{ UFFD_FEATURE_MINOR_SHMEM, "MINOR_SHMEM" },
	{ UFFD_FEATURE_WP_HUGETLBFS_SHMEM, "WP_HUGETLBFS_SHMEM" },
	{ UFFD_FEATURE_WP_UNPOPULATED, "WP_UNPOPULATED" },
	{ UFFD_FEATURE_MOVE, "MOVE" },
	{ UFFD_FEATURE_WP_ASYNC, "WP_ASYNC" },
	{ UFFD_FEATURE_RWP, "RWP" },
	{ UFFD_FEATURE_RWP_ASYNC, "RWP_ASYNC" },
};

int open_uffd(uint64_t features, int flags)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	unsigned int i;
	int uffd;

	for (i = 0; i < ARRAY_SIZE(feature_names); i++)
		if (features & ~uffd_features & feature_names[i].bit)
			skip("the kernel lacks UFFD_FEATURE_%s", feature_names[i].name);
	uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK | flags);
	fail_if(uffd < 0 || ioctl(uffd, UFFDIO_API, &api), "userfaultfd");
	return uffd;
}

int register_range(int uffd, const void *addr, size_t len, uint64_t mode)
{
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)addr, .len = len },
		.mode = mode,
	};

	return ioctl(uffd, UFFDIO_REGISTER, &reg) ? errno : 0;
}

int protect_range(int uffd, const void *addr, size_t len, bool on)
{
	struct uffdio_writeprotect wp = {
		.range = { .start = (uintptr_t)addr, .len = len },
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	return ioctl(uffd, UFFDIO_WRITEPROTECT, &wp) ? errno : 0;
}

int rwprotect_range(int uffd, const void *addr, size_t len, bool on)
{
	struct uffdio_rwprotect rwp = {
		.range = { .start = (uintptr_t)addr, .len = len },
		.mode = on ? UFFDIO_RWPROTECT_MODE_RWP : 0,
	};

	return ioctl(uffd, UFFDIO_RWPROTECT, &rwp) ? errno : 0;
}

void arm(struct memory *mem, uint64_t features)
{
	uint64_t mode = mem->mode->rwp ? UFFDIO_REGISTER_MODE_RWP :
					 UFFDIO_REGISTER_MODE_WP;

	features |= mem->mode->features;
	/* also for private mappings of a file */
	if (!is_private_anon(mem->kind))
		features |= UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
	mem->uffd = open_uffd(features, 0);
	fail_if(register_range(mem->uffd, mem->addr, mem->map_len, mode),
		"UFFDIO_REGISTER");
}

void set_protection(const struct memory *mem, size_t from, size_t len, bool on)
{
	char *addr = mem->addr + from;
	int err;

	if (mem->mode->scan && on)
		err = scan_protect(addr, len) < 0 ? errno : 0;
	else if (mem->mode->rwp)
		err = rwprotect_range(mem->uffd, addr, len, on);
	else
		err = protect_range(mem->uffd, addr, len, on);
	if (err)
		fail("setup: cannot %sprotect %zu bytes at %#zx: %s", on ? "" : "un",
		     len, from, strerror(err));
}

/*
 * What a page is, and where
 */

void look_at(pid_t pid)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/pagemap", pid);
	if (pagemap_fd >= 0)
		close(pagemap_fd);
	pagemap_fd = open(path, O_RDONLY | O_CLOEXEC);
	if (pagemap_fd < 0)
		fail("setup: no %s: %s", path, strerror(errno));
}

uint64_t pagemap_entry(const char *addr)
{
	uint64_t entry;

	if (pread(pagemap_fd, &entry, 8, (uintptr_t)addr / page_size * 8) != 8)
		return 0;
	return entry;
}

uint64_t pfn_of(const char *addr)
{
	uint64_t entry = pagemap_entry(addr);

	return entry & PM_PRESENT ? PAGEMAP_PFN(entry) : 0;
}

uint64_t page_flags(uint64_t pfn)
{
	uint64_t flags;

	return pfn && !pageflags_get(pfn, kpageflags_fd, &flags) ? flags : 0;
}

int node_of(const char *addr)
{
	void *page = (void *)((uintptr_t)addr & ~(page_size - 1));
	int status = -1;

	if (syscall(__NR_move_pages, 0, 1UL, &page, NULL, &status, 0))
		return -1;
	return status;
}

int count_vmas(const char *addr, size_t len)
{
	static char buf[64 << 10];
	unsigned long start, end;
	char *line = buf;
	int n = 0;

	if (read_text("/proc/self/maps", buf, sizeof(buf)) < 0)
		return -1;
	while (line && sscanf(line, "%lx-%lx", &start, &end) == 2) {
		if (start < (uintptr_t)addr + len && end > (uintptr_t)addr)
			n++;
		line = strchr(line, '\n');
		line = line ? line + 1 : NULL;
	}
	return n;
}

size_t smaps_bytes(const char *addr, size_t len, const char *key)
{
	static char buf[256 << 10];
	unsigned long start, end, kb;
	char *line = buf;
	bool inside = false;
	size_t sum = 0;

	if (read_text("/proc/self/smaps", buf, sizeof(buf)) < 0)
		return 0;
	while (line) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			inside = start < (uintptr_t)addr + len &&
				 end > (uintptr_t)addr;
		else if (inside && !strncmp(line, key, strlen(key)) &&
			 sscanf(line + strlen(key), ": %lu kB", &kb) == 1)
			sum += kb << 10;
		line = strchr(line, '\n');
		line = line ? line + 1 : NULL;
	}
	return sum;
}

struct pm_scan_arg scan_arg(const void *addr, size_t len, uint64_t flags,
			    struct page_region *vec, size_t vec_len)
{
	return (struct pm_scan_arg) {
		.size = sizeof(struct pm_scan_arg),
		.flags = flags,
		.start = (uintptr_t)addr,
		.end = (uintptr_t)addr + len,
		.vec = (uintptr_t)vec,
		.vec_len = vec_len,
		.category_mask = PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_WRITTEN,
	};
}

/* Is the page at @addr reported as written? */
int scan_written(const char *addr)
{
	struct page_region region;
	struct pm_scan_arg arg =
		scan_arg((void *)((uintptr_t)addr & ~(page_size - 1)), page_size, 0,
			 &region, 1);

	return ioctl(pagemap_fd, PAGEMAP_SCAN, &arg);
}

int scan_protect(const void *addr, size_t len)
{
	struct pm_scan_arg arg = scan_arg(addr, len, PM_SCAN_WP_MATCHING, NULL, 0);

	return ioctl(pagemap_fd, PAGEMAP_SCAN, &arg);
}
