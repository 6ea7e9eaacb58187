/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The rules of DESIGN section 4 as switches. In the product LKS_ON(rule) is true; the simulator (LKS_SIM) can break one
 * and must then find a counter-example: that is how its checker is tested.
 */
#ifndef LKS_CORE_RULES_H
#define LKS_CORE_RULES_H

#define LKS_RULES(X) \
	X(W1) X(W2) X(W3) X(W4) X(T1) X(T2) X(C2) X(C3) X(C5) X(C6) X(R1) X(R2) X(R3) X(D1) X(D2) X(J1) X(J2) X(J3) X(F1) X(F2) \
	X(H1) X(H2) X(H2f) X(H2d) X(H3) X(H4) X(L1) X(L2) X(L3) X(L4) X(L5) X(S1) X(S2) X(S3) X(S4) X(O1) X(O2) X(X1) X(X2) \
	X(M1) X(M2) X(Q1)

#define LKS_RULE_ENUM(name) LKS_RULE_##name,
enum lks_rule { LKS_RULES(LKS_RULE_ENUM) LKS_RULE_COUNT };

#ifdef LKS_SIM
extern unsigned long long lks_broken;	/* C linkage without being told: a variable */
#define LKS_ON(rule) (!(lks_broken & (1ull << LKS_RULE_##rule)))
#else
#define LKS_ON(rule) true
#endif

#endif
