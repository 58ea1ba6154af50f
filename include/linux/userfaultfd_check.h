/* SPDX-License-Identifier: GPL-2.0 */
#ifndef _LINUX_USERFAULTFD_CHECK_H
#define _LINUX_USERFAULTFD_CHECK_H

#include <linux/mm_types.h>

/*
 * Checks that what userspace has protected through userfaultfd stays protected,
 * see Documentation/mm/userfaultfd_check.rst.
 */
#ifdef CONFIG_USERFAULTFD_CHECK

#include <linux/mm.h>

void userfaultfd_check_protect(struct mm_struct *mm, unsigned long addr,
			       unsigned long len);
void __userfaultfd_check_drop(struct mm_struct *mm, unsigned long addr,
			      unsigned long len);
void __userfaultfd_check_move(struct mm_struct *mm, unsigned long from,
			      unsigned long to, unsigned long len);
void __userfaultfd_check_exit(struct mm_struct *mm);
void __userfaultfd_check_ptes(struct mm_struct *mm, unsigned long addr,
			      pte_t pte, unsigned int nr);
void __userfaultfd_check_pmds(struct mm_struct *mm, unsigned long addr,
			      pmd_t pmd, unsigned int nr);

/* For the tests of it */
bool userfaultfd_check_is_protected(struct mm_struct *mm, unsigned long addr);

/* Most mms have no shadow: one test for these. */
static inline bool userfaultfd_check_has_shadow(struct mm_struct *mm)
{
	return mm_flags_test(MMF_USERFAULTFD_CHECK, mm);
}

static inline void userfaultfd_check_drop(struct mm_struct *mm,
					  unsigned long addr,
					  unsigned long len)
{
	if (userfaultfd_check_has_shadow(mm))
		__userfaultfd_check_drop(mm, addr, len);
}

static inline void userfaultfd_check_move(struct mm_struct *mm,
					  unsigned long from, unsigned long to,
					  unsigned long len)
{
	if (userfaultfd_check_has_shadow(mm))
		__userfaultfd_check_move(mm, from, to, len);
}

static inline void userfaultfd_check_exit(struct mm_struct *mm)
{
	if (userfaultfd_check_has_shadow(mm))
		__userfaultfd_check_exit(mm);
}

static inline void userfaultfd_check_ptes(struct mm_struct *mm,
					  unsigned long addr, pte_t pte,
					  unsigned int nr)
{
	if (userfaultfd_check_has_shadow(mm))
		__userfaultfd_check_ptes(mm, addr, pte, nr);
}

static inline void userfaultfd_check_pmds(struct mm_struct *mm,
					  unsigned long addr, pmd_t pmd,
					  unsigned int nr)
{
	if (userfaultfd_check_has_shadow(mm))
		__userfaultfd_check_pmds(mm, addr, pmd, nr);
}

#else

/* No inline functions: their conditions would count when callers are inlined. */
#define userfaultfd_check_protect(mm, addr, len)	\
	do { (void)(mm); (void)(addr); (void)(len); } while (0)
#define userfaultfd_check_drop(mm, addr, len)		\
	do { (void)(mm); (void)(addr); (void)(len); } while (0)
#define userfaultfd_check_move(mm, from, to, len)	\
	do { (void)(mm); (void)(from); (void)(to); (void)(len); } while (0)

static inline void userfaultfd_check_exit(struct mm_struct *mm)
{
}

static inline void userfaultfd_check_ptes(struct mm_struct *mm,
					  unsigned long addr, pte_t pte,
					  unsigned int nr)
{
}

static inline void userfaultfd_check_pmds(struct mm_struct *mm,
					  unsigned long addr, pmd_t pmd,
					  unsigned int nr)
{
}

#endif /* CONFIG_USERFAULTFD_CHECK */

#endif /* _LINUX_USERFAULTFD_CHECK_H */
