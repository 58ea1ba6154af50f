/*
 * The guest of the demonstration: a boot sector that adds one to the first byte
 * of each page from 1 MiB to 100 MiB, in order, round after round. Whenever it
 * is stopped, its pages therefore hold two values at most: one more up to the
 * page that it has come to, and one less behind it. All else in these pages is
 * zero, so that KSM has something to merge.
 *
 *	as --32 -mx86-used-note=no -o guest.o guest.S
 *	ld -m elf_i386 -N -Ttext 0x7c00 -e start --oformat binary -o guest.bin guest.o
 */
	.set	PAGE, 4096
	.set	FIRST, 0x100000		/* these three: see check.c */
	.set	END, 0x6400000
	.set	ROUNDS, 0x7000		/* how many rounds are complete */

	.text
	.code16
	.globl	start
start:
	cli
	xorw	%ax, %ax
	movw	%ax, %ds
	inb	$0x92, %al		/* A20, should the firmware have left it off */
	orb	$2, %al
	outb	%al, $0x92
	lgdt	gdt
	movl	%cr0, %eax
	orb	$1, %al
	movl	%eax, %cr0
	ljmp	$8, $flat

	.code32
flat:
	movw	$16, %ax
	movw	%ax, %ds
	movl	$0, ROUNDS
	movl	$FIRST, %edi
clear:
	movb	$0, (%edi)
	addl	$PAGE, %edi
	cmpl	$END, %edi
	jb	clear
round:
	movl	$FIRST, %edi
next:
	incb	(%edi)
	addl	$PAGE, %edi
	cmpl	$END, %edi
	jb	next
	incl	ROUNDS
	jmp	round

	.balign	8
descriptors:
	.quad	0
	.quad	0x00cf9a000000ffff	/* 8: code, 0 to 4 GiB */
	.quad	0x00cf92000000ffff	/* 16: data, the same */
gdt:
	.word	. - descriptors - 1
	.long	descriptors

	.org	510			/* what makes it bootable */
	.word	0xaa55
