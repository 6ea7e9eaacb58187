# SPDX-License-Identifier: GPL-2.0-or-later
#
# Checks of the module beyond the lab (included by the Makefile).
#
#	make check                the module through sparse; the form of its sources (test/style)
#	make kernels [SUITES=..]  the module against the kernels of other Debian suites, see scripts/kernels; needs root

.PHONY: check kernels

# sparse looks at what is compiled: a build of its own, so that everything is
check:
	test/style
	@rm -rf $B/sparse && mkdir -p $B/sparse
	@tar -c --exclude='*.o' --exclude='*.cmd' Kbuild kmod | tar -x -C $B/sparse
	@$(MAKE) -C $(KDIR) M=$(CURDIR)/$B/sparse C=1 CHECK=sparse CF='-Wsparse-error -D__CHECK_ENDIAN__' modules \
		>$B/sparse/log 2>&1 || { grep -E 'error|warning' $B/sparse/log >&2; exit 1; }
	@n=$$(grep -c CHECK $B/sparse/log); [ "$$n" != 0 ] || { echo "sparse: it looked at no file (make -s?)" >&2; exit 1; }; \
	echo "sparse: $$n files, nothing to complain about"
	@echo "2 passed, 0 failed"

kernels:
	scripts/kernels $(SUITES)
