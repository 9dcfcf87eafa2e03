"""The expected numbers of the tests in src/stats, by scipy and scikit-learn.

Needs numpy, scipy and scikit-learn 1.9.
"""

from scipy.stats import binomtest

print("interval.rs: right, of, low, high")
for right, of in [(0, 1), (1, 1), (0, 20), (7, 20), (20, 20), (873, 1000), (5_000, 6_149)]:
    interval = binomtest(right, of).proportion_ci(method="wilson")
    print(f"({right}, {of}, {interval.low:.15}, {interval.high:.15}),")
