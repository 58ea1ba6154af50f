// SPDX-License-Identifier: GPL-2.0
/*
 * Checks that what userspace has protected through userfaultfd stays protected.
 *
 * A shadow of each mm holds which pages are protected. It is written where userspace
 * says so, and never where an entry is carried from one form to another. Whoever
 * puts a present entry without the uffd bit where the shadow says protected is
 * reported. See Documentation/mm/userfaultfd_check.rst.
 */
#include <linux/mm.h>
#include <linux/page_table_check.h>
#include <linux/slab.h>
#include <linux/userfaultfd_check.h>
#include <linux/xarray.h>

#define MAX_REPORTS	16

/*
 * The protected pages of an mm: a bitmap for each PMD_SIZE in which there are any. The
 * lock of the XArray protects the bitmaps too; it is taken under page table locks.
 */
struct shadow {
	struct xarray bitmaps;
};

/* By the address of the mm. Most have none, and not the flag that says so. */
static DEFINE_XARRAY(shadows);

static atomic_t nr_reports = ATOMIC_INIT(0);

static struct shadow *shadow_of(struct mm_struct *mm)
{
	if (!userfaultfd_check_has_shadow(mm))
		return NULL;
	return xa_load(&shadows, (unsigned long)mm);
}

/* Under a page table lock: no sleeping */
static struct shadow *make_shadow(struct mm_struct *mm)
{
	struct shadow *shadow = shadow_of(mm), *old;

	if (shadow)
		return shadow;

	shadow = kzalloc_obj(*shadow, GFP_ATOMIC | __GFP_NOWARN);
	if (!shadow)
		return NULL;
	xa_init(&shadow->bitmaps);

	old = xa_cmpxchg(&shadows, (unsigned long)mm, NULL, shadow,
			 GFP_ATOMIC | __GFP_NOWARN);
	if (old) {
		kfree(shadow);
		if (xa_is_err(old))
			return NULL;
		shadow = old;
	}
	/* Whoever comes second sets it too: its pages are known from here on. */
	mm_flags_set(MMF_USERFAULTFD_CHECK, mm);
	return shadow;
}

/* The bit of an address, and the first address behind its bitmap */
static unsigned int bit_of(unsigned long addr)
{
	return (addr & ~PMD_MASK) >> PAGE_SHIFT;
}

static unsigned long end_of(unsigned long addr)
{
	return (addr & PMD_MASK) + PMD_SIZE;
}

/* Protects pages of one bitmap, whose lock is held. */
static bool set_pages(struct shadow *shadow, unsigned long addr, unsigned long len)
{
	unsigned long index = addr >> PMD_SHIFT;
	unsigned long *bitmap = xa_load(&shadow->bitmaps, index);

	if (!bitmap) {
		bitmap = bitmap_zalloc(PTRS_PER_PTE, GFP_ATOMIC | __GFP_NOWARN);
		if (!bitmap)
			return false;
		if (xa_is_err(__xa_store(&shadow->bitmaps, index, bitmap,
					 GFP_ATOMIC | __GFP_NOWARN))) {
			bitmap_free(bitmap);
			return false;
		}
	}
	bitmap_set(bitmap, bit_of(addr), len >> PAGE_SHIFT);
	return true;
}

static void warn_no_memory(void)
{
	pr_warn_once("userfaultfd_check: no memory, some pages are not checked\n");
}

/**
 * userfaultfd_check_protect() - userspace has protected pages
 * @mm: Whose.
 * @addr: Of the first page.
 * @len: In bytes, whole pages.
 *
 * To be called where UFFDIO_WRITEPROTECT, UFFDIO_RWPROTECT, UFFDIO_COPY and the
 * like, or PAGEMAP_SCAN protect a page, or put a marker for it.
 *
 * Context: The lock of the page table is held. Does not sleep; pages for which
 * there is no memory are not checked.
 */
void userfaultfd_check_protect(struct mm_struct *mm, unsigned long addr,
			       unsigned long len)
{
	unsigned long end = addr + len, next;
	struct shadow *shadow;
	bool done;

	/* Nobody would ask. */
	if (static_branch_likely(&page_table_check_disabled))
		return;

	shadow = make_shadow(mm);
	for (done = shadow; done && addr < end; addr = next) {
		next = min(end, end_of(addr));
		xa_lock(&shadow->bitmaps);
		done = set_pages(shadow, addr, next - addr);
		xa_unlock(&shadow->bitmaps);
	}
	if (!done)
		warn_no_memory();
}

/**
 * __userfaultfd_check_drop() - pages are not protected anymore, or will not be
 * @mm: Whose.
 * @addr: Of the first page.
 * @len: In bytes, whole pages.
 *
 * To be called before an entry is set without the bit, or after it was cleared, where
 * userspace lifts the protection, or does what drops it by definition.
 *
 * Context: The lock of the page table is held, or nobody else can protect pages of
 * the range. Does not sleep.
 */
void __userfaultfd_check_drop(struct mm_struct *mm, unsigned long addr,
			      unsigned long len)
{
	struct shadow *shadow = shadow_of(mm);
	unsigned long index, *bitmap, end = addr + len;

	if (!shadow || !len)
		return;

	xa_for_each_range(&shadow->bitmaps, index, bitmap, addr >> PMD_SHIFT,
			  (end - 1) >> PMD_SHIFT) {
		unsigned long from = max(addr, index << PMD_SHIFT);
		unsigned long next = min(end, end_of(from));

		xa_lock(&shadow->bitmaps);
		/* It may have been freed meanwhile. */
		bitmap = xa_load(&shadow->bitmaps, index);
		if (bitmap) {
			bitmap_clear(bitmap, bit_of(from), (next - from) >> PAGE_SHIFT);
			if (bitmap_empty(bitmap, PTRS_PER_PTE)) {
				__xa_erase(&shadow->bitmaps, index);
				bitmap_free(bitmap);
			}
		}
		xa_unlock(&shadow->bitmaps);
	}
}

/**
 * __userfaultfd_check_move() - mremap() moves pages
 * @mm: Whose.
 * @from: Where the first page was.
 * @to: Where it goes.
 * @len: In bytes, whole pages.
 *
 * Context: The mmap_lock is held for writing. Does not sleep.
 */
void __userfaultfd_check_move(struct mm_struct *mm, unsigned long from,
			      unsigned long to, unsigned long len)
{
	struct shadow *shadow = shadow_of(mm);
	unsigned long index, *bitmap;
	unsigned int bit;
	bool done = true;

	if (!shadow || !len)
		return;

	__userfaultfd_check_drop(mm, to, len);
	xa_for_each_range(&shadow->bitmaps, index, bitmap, from >> PMD_SHIFT,
			  (from + len - 1) >> PMD_SHIFT) {
		xa_lock(&shadow->bitmaps);
		bitmap = xa_load(&shadow->bitmaps, index);
		for (bit = 0; bitmap && bit < PTRS_PER_PTE; bit++) {
			unsigned long at = (index << PMD_SHIFT) + bit * PAGE_SIZE - from;

			/* at is huge before from. */
			if (at < len && test_bit(bit, bitmap))
				done &= set_pages(shadow, to + at, PAGE_SIZE);
		}
		xa_unlock(&shadow->bitmaps);
	}
	if (!done)
		warn_no_memory();
	__userfaultfd_check_drop(mm, from, len);
}

/**
 * __userfaultfd_check_exit() - forget an mm
 * @mm: The mm, without users.
 *
 * Context: The mmap_lock is held for writing. Does not sleep.
 */
void __userfaultfd_check_exit(struct mm_struct *mm)
{
	struct shadow *shadow = xa_erase(&shadows, (unsigned long)mm);
	unsigned long index, *bitmap;

	mm_flags_clear(MMF_USERFAULTFD_CHECK, mm);
	if (!shadow)
		return;

	xa_for_each(&shadow->bitmaps, index, bitmap)
		bitmap_free(bitmap);
	xa_destroy(&shadow->bitmaps);
	kfree(shadow);
}

/* The first protected page of a range, or the end of it */
static unsigned long find_protected(struct shadow *shadow, unsigned long addr,
				    unsigned long end)
{
	unsigned long index, *bitmap;

	xa_for_each_range(&shadow->bitmaps, index, bitmap, addr >> PMD_SHIFT,
			  (end - 1) >> PMD_SHIFT) {
		unsigned long from = max(addr, index << PMD_SHIFT);
		unsigned long next = min(end, end_of(from)), bit, nr;

		xa_lock(&shadow->bitmaps);
		bitmap = xa_load(&shadow->bitmaps, index);
		nr = bit_of(from) + ((next - from) >> PAGE_SHIFT);
		bit = bitmap ? find_next_bit(bitmap, nr, bit_of(from)) : nr;
		xa_unlock(&shadow->bitmaps);
		if (bit < nr)
			return (index << PMD_SHIFT) + bit * PAGE_SIZE;
	}
	return end;
}

/**
 * userfaultfd_check_is_protected() - what the shadow says of a page
 * @mm: Whose.
 * @addr: Of the page.
 *
 * Context: Any. Does not sleep.
 *
 * Return: Whether userspace has protected it, as far as that is known.
 */
bool userfaultfd_check_is_protected(struct mm_struct *mm, unsigned long addr)
{
	struct shadow *shadow = shadow_of(mm);

	return shadow && find_protected(shadow, addr, addr + PAGE_SIZE) == addr;
}

static void check_range(struct mm_struct *mm, unsigned long addr, unsigned long len,
			unsigned long long entry)
{
	struct shadow *shadow = shadow_of(mm);
	unsigned long end = addr + len, at;
	int nr;

	if (!shadow)
		return;
	at = find_protected(shadow, addr, end);
	if (at == end)
		return;

	nr = atomic_inc_return(&nr_reports);
	WARN(nr <= MAX_REPORTS,
	     "userfaultfd_check: %#lx is protected, but not by its new entry %#llx\n",
	     at, entry);
	if (nr == MAX_REPORTS)
		pr_warn("userfaultfd_check: no more reports\n");
	/* Once for each loss */
	__userfaultfd_check_drop(mm, at, end - at);
}

/**
 * __userfaultfd_check_ptes() - check PTEs that are about to be set
 * @mm: Whose.
 * @addr: Of the first page.
 * @pte: The first of them.
 * @nr: How many, of pages that follow each other.
 *
 * Warns if a page of them is protected, and the PTEs are present without the uffd bit,
 * or writable. The pages are forgotten then.
 *
 * Context: The lock of the page table is held.
 */
void __userfaultfd_check_ptes(struct mm_struct *mm, unsigned long addr, pte_t pte,
			      unsigned int nr)
{
	if (pte_present(pte) && (!pte_uffd(pte) || pte_write(pte)))
		check_range(mm, addr, nr * PAGE_SIZE, pte_val(pte));
}

/**
 * __userfaultfd_check_pmds() - check PMDs that are about to be set
 * @mm: Whose.
 * @addr: Of the first page.
 * @pmd: The first of them.
 * @nr: How many, of huge pages that follow each other.
 *
 * See userfaultfd_check_ptes(). Page tables are none of its business.
 *
 * Context: The lock of the page table is held.
 */
void __userfaultfd_check_pmds(struct mm_struct *mm, unsigned long addr, pmd_t pmd,
			      unsigned int nr)
{
	if (pmd_present(pmd) && pmd_leaf(pmd) && (!pmd_uffd(pmd) || pmd_write(pmd)))
		check_range(mm, addr, nr * PMD_SIZE, pmd_val(pmd));
}
