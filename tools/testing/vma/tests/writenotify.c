// SPDX-License-Identifier: GPL-2.0-or-later

/*
 * Why a mapping needs write faults, and which PTEs can do without:
 *
 * - vma_wants_writenotify() says whether there is a reason at all: what backs the
 *   mapping, soft-dirty tracking, userfaultfd. It is about the flags and the
 *   backing of a VMA, not about vm_page_prot. vma_set_page_prot() takes the
 *   write permission out of vm_page_prot then.
 *
 * - vma_wants_uffd_wp_writenotify_only() says whether userfaultfd is the only
 *   reason. Then a PTE without the uffd bit may be writable, clean or dirty.
 *
 * - vma_wants_manual_pte_write_upgrade() says whether PTEs that are built from
 *   vm_page_prot can lack a write permission that they might have. For shared
 *   mappings that is so while writes are notified.
 */

static vm_fault_t dummy_mkwrite(struct vm_fault *vmf)
{
	return 0;
}

static const struct vm_operations_struct ops_plain = {};

static const struct vm_operations_struct ops_page_mkwrite = {
	.page_mkwrite = dummy_mkwrite,
};

static const struct vm_operations_struct ops_pfn_mkwrite = {
	.pfn_mkwrite = dummy_mkwrite,
};

static const struct vm_operations_struct ops_both_mkwrite = {
	.page_mkwrite = dummy_mkwrite,
	.pfn_mkwrite = dummy_mkwrite,
};

/* What a mapping is backed by, and what is tracked in it. */
struct backing {
	const char *name;
	const struct vm_operations_struct *ops;
	bool file;
	bool writeback;
	bool pfnmap;
	bool hugetlb;
	bool softdirty;		/* Soft-dirty tracking is on. */
	bool uffd_wp;
	unsigned int reasons;	/* Expected, if shared and writable. */
};

#define BACKER		BIT(0)
#define SOFT_DIRTY	BIT(1)
#define UFFD_WP		BIT(2)

static const struct backing backings[] = {
	/* What backs these is no reason, so only tracking counts. */
	{ "shmem", &ops_plain, .file = true },
	{ "shmem, softdirty", &ops_plain, .file = true, .softdirty = true,
	  .reasons = SOFT_DIRTY },
	{ "shmem, uffd-wp", &ops_plain, .file = true, .uffd_wp = true,
	  .reasons = UFFD_WP },
	{ "shmem, softdirty, uffd-wp", &ops_plain, .file = true,
	  .softdirty = true, .uffd_wp = true, .reasons = SOFT_DIRTY | UFFD_WP },
	{ "no file", &ops_plain },
	{ "no file, softdirty", &ops_plain, .softdirty = true, .reasons = SOFT_DIRTY },
	{ "no file, uffd-wp", &ops_plain, .uffd_wp = true, .reasons = UFFD_WP },
	{ "no ops", NULL },
	{ "no ops, softdirty", NULL, .softdirty = true, .reasons = SOFT_DIRTY },
	{ "no ops, uffd-wp", NULL, .uffd_wp = true, .reasons = UFFD_WP },

	/* Huge pages have no soft-dirty tracking. */
	{ "hugetlb", &ops_plain, .file = true, .hugetlb = true },
	{ "hugetlb, softdirty", &ops_plain, .file = true, .hugetlb = true,
	  .softdirty = true },
	{ "hugetlb, uffd-wp", &ops_plain, .file = true, .hugetlb = true,
	  .uffd_wp = true, .reasons = UFFD_WP },
	{ "hugetlb, softdirty, uffd-wp", &ops_plain, .file = true,
	  .hugetlb = true, .softdirty = true, .uffd_wp = true, .reasons = UFFD_WP },

	/* A filesystem is a reason, whatever is tracked besides. */
	{ "page_mkwrite", &ops_page_mkwrite, .file = true, .writeback = true,
	  .reasons = BACKER },
	{ "page_mkwrite, no writeback", &ops_page_mkwrite, .file = true,
	  .reasons = BACKER },
	{ "page_mkwrite, softdirty", &ops_page_mkwrite, .file = true,
	  .writeback = true, .softdirty = true, .reasons = BACKER | SOFT_DIRTY },
	{ "page_mkwrite, uffd-wp", &ops_page_mkwrite, .file = true,
	  .writeback = true, .uffd_wp = true, .reasons = BACKER | UFFD_WP },
	{ "page_mkwrite, softdirty, uffd-wp", &ops_page_mkwrite, .file = true,
	  .writeback = true, .softdirty = true, .uffd_wp = true,
	  .reasons = BACKER | SOFT_DIRTY | UFFD_WP },
	{ "pfn_mkwrite, softdirty, uffd-wp", &ops_pfn_mkwrite, .file = true,
	  .softdirty = true, .uffd_wp = true,
	  .reasons = BACKER | SOFT_DIRTY | UFFD_WP },
	{ "pfn_mkwrite", &ops_pfn_mkwrite, .file = true, .reasons = BACKER },
	{ "pfn_mkwrite, uffd-wp", &ops_pfn_mkwrite, .file = true,
	  .uffd_wp = true, .reasons = BACKER | UFFD_WP },
	{ "page_mkwrite, pfn_mkwrite", &ops_both_mkwrite, .file = true,
	  .writeback = true, .reasons = BACKER },
	{ "writeback", &ops_plain, .file = true, .writeback = true,
	  .reasons = BACKER },
	{ "writeback, softdirty", &ops_plain, .file = true, .writeback = true,
	  .softdirty = true, .reasons = BACKER | SOFT_DIRTY },
	{ "writeback, uffd-wp", &ops_plain, .file = true, .writeback = true,
	  .uffd_wp = true, .reasons = BACKER | UFFD_WP },

	/* There are no pages to write back behind bare PFNs. */
	{ "pfnmap", &ops_plain, .file = true, .pfnmap = true },
	{ "pfnmap, writeback", &ops_plain, .file = true, .writeback = true,
	  .pfnmap = true },
	{ "pfnmap, pfn_mkwrite", &ops_pfn_mkwrite, .file = true,
	  .pfnmap = true, .reasons = BACKER },
	{ "pfnmap, softdirty", &ops_plain, .file = true, .pfnmap = true,
	  .softdirty = true, .reasons = SOFT_DIRTY },
	{ "pfnmap, uffd-wp", &ops_plain, .file = true, .pfnmap = true,
	  .uffd_wp = true, .reasons = UFFD_WP },
	{ "writeback, softdirty, uffd-wp", &ops_plain, .file = true,
	  .writeback = true, .softdirty = true, .uffd_wp = true,
	  .reasons = BACKER | SOFT_DIRTY | UFFD_WP },
	{ "pfnmap, writeback, softdirty, uffd-wp", &ops_plain, .file = true,
	  .writeback = true, .pfnmap = true, .softdirty = true,
	  .uffd_wp = true, .reasons = SOFT_DIRTY | UFFD_WP },
	{ "no ops, softdirty, uffd-wp", NULL, .softdirty = true,
	  .uffd_wp = true, .reasons = SOFT_DIRTY | UFFD_WP },
};

/* What userspace asked mmap() or mprotect() for. */
struct access {
	const char *name;
	bool shared;
	bool write;
};

static const struct access accesses[] = {
	{ "shared, writable", .shared = true, .write = true },
	{ "shared, read-only", .shared = true },
	{ "private, writable", .write = true },
	{ "private, read-only" },
};

/* What is found in vm_page_prot. */
enum page_prot {
	PROT_FULL,		/* What the flags stand for. */
	PROT_DOWNGRADED,	/* That, without VM_SHARED, for writenotify. */
	PROT_FULL_NC,		/* The same two, with a caching attribute. */
	PROT_DOWNGRADED_NC,
	PROT_DRIVER,		/* With a bit that pgprot_modify() loses. */
	PROT_DRIVER_RO,		/* Read-only, whatever the flags say. */
	PROT_NR,
};

static const char * const page_prot_names[] = {
	[PROT_FULL]		= "full",
	[PROT_DOWNGRADED]	= "downgraded",
	[PROT_FULL_NC]		= "full, uncached",
	[PROT_DOWNGRADED_NC]	= "downgraded, uncached",
	[PROT_DRIVER]		= "driver's own",
	[PROT_DRIVER_RO]	= "driver's own, read-only",
};

#define PGPROT_NC		0x10UL
#define PGPROT_DRIVER_BIT	0x100UL

static unsigned long caching_attr(enum page_prot prot)
{
	return prot == PROT_FULL_NC || prot == PROT_DOWNGRADED_NC ? PGPROT_NC : 0;
}

/* One combination of all that, and a VMA that is made from it. */
struct test_vma {
	const struct backing *backing;
	const struct access *access;
	enum page_prot prot;
	char name[128];

	struct vm_area_struct vma;
	struct file file;
	struct address_space mapping;
};

static void init_test_vma(struct test_vma *t, const struct backing *backing,
			  const struct access *access)
{
	struct vm_area_struct *vma = &t->vma;

	memset(t, 0, sizeof(*t));
	t->backing = backing;
	t->access = access;

	vma->vm_start = 0x1000;
	vma->vm_end = 0x3000;
	vma->vm_ops = backing->ops;
	vma_set_flags(vma, VMA_READ_BIT, VMA_MAYREAD_BIT, VMA_MAYWRITE_BIT);
	if (access->write)
		vma_set_flags(vma, VMA_WRITE_BIT);
	if (access->shared)
		vma_set_flags(vma, VMA_SHARED_BIT, VMA_MAYSHARE_BIT);
	if (backing->pfnmap)
		vma_set_flags(vma, VMA_PFNMAP_BIT);
	if (backing->hugetlb)
		vma_set_flags(vma, VMA_HUGETLB_BIT);
	if (!backing->softdirty)
		vma_set_flags(vma, VMA_SOFTDIRTY_BIT);
	if (backing->uffd_wp)
		vma_set_flags(vma, VMA_UFFD_WP_BIT);
	if (backing->file) {
		t->mapping.no_writeback = !backing->writeback;
		t->file.f_mapping = &t->mapping;
		vma->vm_file = &t->file;
	}
}

static pgprot_t full_page_prot(const struct vm_area_struct *vma)
{
	return vm_get_page_prot(vma->vm_flags);
}

static pgprot_t downgraded_page_prot(const struct vm_area_struct *vma)
{
	return vm_get_page_prot(vma->vm_flags & ~VM_SHARED);
}

static void init_page_prot(struct test_vma *t, enum page_prot prot)
{
	struct vm_area_struct *vma = &t->vma;
	unsigned long val;

	t->prot = prot;
	snprintf(t->name, sizeof(t->name), "'%s', %s, %s prot",
		 t->backing->name, t->access->name, page_prot_names[prot]);

	switch (prot) {
	case PROT_DOWNGRADED:
	case PROT_DOWNGRADED_NC:
		val = pgprot_val(downgraded_page_prot(vma));
		break;
	case PROT_DRIVER_RO:
		val = VM_READ;
		break;
	default:
		val = pgprot_val(full_page_prot(vma));
		break;
	}

	if (prot == PROT_DRIVER)
		val |= PGPROT_DRIVER_BIT;

	vma->vm_page_prot = __pgprot(val | caching_attr(prot));
}

/* Run a check on every combination there is. */
static bool check_each_vma(bool (*check)(struct test_vma *t))
{
	enum page_prot prot;
	struct test_vma t;
	int i, j;

	for (i = 0; i < ARRAY_SIZE(backings); i++) {
		for (j = 0; j < ARRAY_SIZE(accesses); j++) {
			for (prot = PROT_FULL; prot < PROT_NR; prot++) {
				init_test_vma(&t, &backings[i], &accesses[j]);
				init_page_prot(&t, prot);
				if (!check(&t))
					return false;
			}
		}
	}

	return true;
}

/* Say what the VMA was made from on failure. */
#define ASSERT_VMA(_t, _expr) __ASSERT_TRUE(_expr, " for %s", (_t)->name)

static unsigned int reasons_expected(const struct test_vma *t)
{
	return t->access->shared && t->access->write ? t->backing->reasons : 0;
}

static bool notify_expected(const struct test_vma *t)
{
	return reasons_expected(t) != 0;
}

/* Only then a clean PTE without the uffd bit may be writable. */
static bool uffd_wp_only_expected(const struct test_vma *t)
{
	return reasons_expected(t) == UFFD_WP;
}

static bool check_uffd_wp_only(struct test_vma *t)
{
	ASSERT_VMA(t, vma_wants_uffd_wp_writenotify_only(&t->vma) ==
		      uffd_wp_only_expected(t));
	return true;
}

static bool test_uffd_wp_only(void)
{
	return check_each_vma(check_uffd_wp_only);
}

/* It is what backs the mapping that needs dirty tracking. */
static bool check_needs_dirty_tracking(struct test_vma *t)
{
	ASSERT_VMA(t, vma_needs_dirty_tracking(&t->vma) ==
		      !!(reasons_expected(t) & BACKER));
	return true;
}

static bool test_needs_dirty_tracking(void)
{
	return check_each_vma(check_needs_dirty_tracking);
}

static bool check_wants_writenotify(struct test_vma *t)
{
	ASSERT_VMA(t, vma_wants_writenotify(&t->vma) == notify_expected(t));
	return true;
}

static bool test_wants_writenotify(void)
{
	return check_each_vma(check_wants_writenotify);
}

static bool check_wants_manual_pte_write_upgrade(struct test_vma *t)
{
	bool want;

	/* Writable private mappings have to look, for COW. */
	if (t->access->shared)
		want = notify_expected(t);
	else
		want = t->access->write;

	ASSERT_VMA(t, vma_wants_manual_pte_write_upgrade(&t->vma) == want);
	return true;
}

static bool test_wants_manual_pte_write_upgrade(void)
{
	return check_each_vma(check_wants_manual_pte_write_upgrade);
}

static bool check_after_set_page_prot(struct test_vma *t)
{
	struct vm_area_struct *vma = &t->vma;
	pgprot_t want;

	vma_set_page_prot(vma);

	want = notify_expected(t) ? downgraded_page_prot(vma) :
				    full_page_prot(vma);
	ASSERT_VMA(t, pgprot_val(vma->vm_page_prot) ==
		      (pgprot_val(want) | caching_attr(t->prot)));

	/* Whatever it was before, PTEs need a look if they come downgraded. */
	if (t->access->shared)
		ASSERT_VMA(t, vma_wants_manual_pte_write_upgrade(vma) ==
			      notify_expected(t));

	return true;
}

static bool test_after_set_page_prot(void)
{
	return check_each_vma(check_after_set_page_prot);
}

/* The life of a shared mapping that is registered for uffd-wp. */
static bool test_writenotify_uffd_wp_transitions(void)
{
	struct test_vma t;
	struct vm_area_struct *vma = &t.vma;

	/* Shared and writable shmem, without tracking. */
	init_test_vma(&t, &backings[0], &accesses[0]);

	/* mmap(): the write permission comes with vm_page_prot. */
	vma_set_page_prot(vma);
	ASSERT_FALSE(vma_wants_writenotify(vma));
	ASSERT_FALSE(vma_wants_manual_pte_write_upgrade(vma));

	/* Register: from now on it has to be given back to single PTEs. */
	vma_set_flags(vma, VMA_UFFD_WP_BIT);
	ASSERT_TRUE(vma_wants_writenotify(vma));
	vma_set_page_prot(vma);
	ASSERT_EQ(pgprot_val(vma->vm_page_prot),
		  pgprot_val(downgraded_page_prot(vma)));
	ASSERT_TRUE(vma_wants_writenotify(vma));
	ASSERT_TRUE(vma_wants_manual_pte_write_upgrade(vma));
	ASSERT_TRUE(vma_wants_uffd_wp_writenotify_only(vma));

	/* mprotect(PROT_READ): nothing may be made writable. */
	vma_clear_flags(vma, VMA_WRITE_BIT);
	ASSERT_FALSE(vma_wants_writenotify(vma));
	ASSERT_FALSE(vma_wants_manual_pte_write_upgrade(vma));
	vma_set_page_prot(vma);
	ASSERT_FALSE(vma_wants_writenotify(vma));
	ASSERT_FALSE(vma_wants_manual_pte_write_upgrade(vma));
	ASSERT_FALSE(vma_wants_uffd_wp_writenotify_only(vma));

	/* mprotect(PROT_NONE) */
	vma_clear_flags(vma, VMA_READ_BIT);
	vma_set_page_prot(vma);
	ASSERT_FALSE(vma_wants_writenotify(vma));
	ASSERT_FALSE(vma_wants_manual_pte_write_upgrade(vma));

	/* mprotect(PROT_READ | PROT_WRITE) */
	vma_set_flags(vma, VMA_READ_BIT, VMA_WRITE_BIT);
	ASSERT_TRUE(vma_wants_writenotify(vma));
	vma_set_page_prot(vma);
	ASSERT_EQ(pgprot_val(vma->vm_page_prot),
		  pgprot_val(downgraded_page_prot(vma)));
	ASSERT_TRUE(vma_wants_manual_pte_write_upgrade(vma));

	/* Soft-dirty tracking takes over when userfaultfd goes. */
	vma_clear_flags(vma, VMA_SOFTDIRTY_BIT);
	vma_set_page_prot(vma);
	ASSERT_TRUE(vma_wants_manual_pte_write_upgrade(vma));
	ASSERT_FALSE(vma_wants_uffd_wp_writenotify_only(vma));
	vma_clear_flags(vma, VMA_UFFD_WP_BIT);
	vma_set_page_prot(vma);
	ASSERT_EQ(pgprot_val(vma->vm_page_prot),
		  pgprot_val(downgraded_page_prot(vma)));
	ASSERT_TRUE(vma_wants_manual_pte_write_upgrade(vma));

	/* With no reason left, it is as it was after mmap(). */
	vma_set_flags(vma, VMA_SOFTDIRTY_BIT);
	vma_set_page_prot(vma);
	ASSERT_EQ(pgprot_val(vma->vm_page_prot),
		  pgprot_val(full_page_prot(vma)));
	ASSERT_FALSE(vma_wants_writenotify(vma));
	ASSERT_FALSE(vma_wants_manual_pte_write_upgrade(vma));

	return true;
}

static void run_writenotify_tests(int *num_tests, int *num_fail)
{
	TEST(uffd_wp_only);
	TEST(needs_dirty_tracking);
	TEST(wants_writenotify);
	TEST(wants_manual_pte_write_upgrade);
	TEST(after_set_page_prot);
	TEST(writenotify_uffd_wp_transitions);
}
