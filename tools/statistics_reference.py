"""The expected numbers of the tests in src/stats, by scipy and scikit-learn.

Needs numpy, scipy and scikit-learn 1.9. The images, logits and labels are those of the tests, by the same formulas.
"""

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import binomtest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss

print("interval.rs: right, of, low, high")
for right, of in [(0, 1), (1, 1), (0, 20), (7, 20), (20, 20), (873, 1000), (5_000, 6_149)]:
    interval = binomtest(right, of).proportion_ci(method="wilson")
    print(f"({right}, {of}, {interval.low:.15}, {interval.high:.15}),")


def case(images, columns, classes):
    """Numbers 0 to 5.5 [N,columns], greater by 2 where the column is the label, and labels [N]."""
    i, j = np.arange(images)[:, None], np.arange(columns)[None, :]
    labels = (3 * i + i // 4)[:, 0] % classes
    numbers = ((7 * i + 13 * j + 5 * i * j + i * i) % 23) / 4.0
    numbers[np.arange(images), labels] += 2.0
    return numbers, labels


print("temperature.rs: prior, temperature; at a temperature, NLL and Brier score")
logits, labels = case(40, 6, 5)
each = np.arange(len(labels))


def nll(temperature):
    return -log_softmax(logits / temperature, axis=1)[each, labels].sum()


for prior in [None, 2.0, 1.0, 0.5]:
    cost = lambda u: nll(np.exp(u)) + (0 if prior is None else u * u / (2 * prior**2))
    found = minimize_scalar(cost, bounds=(-7, 7), method="bounded", options={"xatol": 1e-12})
    print(f"({prior}, {np.exp(found.x):.10}),")
    if prior == 1.0:
        # The standard error from the curvature at the minimum, by central differences.
        bend = (cost(found.x + 1e-3) - 2 * cost(found.x) + cost(found.x - 1e-3)) / 1e-6
        print(f"half a standard error above: {np.exp(found.x + 0.5 / np.sqrt(bend)):.7}")
for temperature in [1.0, 3.0]:
    p = softmax(logits / temperature, axis=1)
    scores = log_loss(labels, p, labels=range(6)), brier_score_loss(labels, p, labels=range(6), scale_by_half=False)
    assert np.isclose(scores[1], brier_score_loss(labels, p, labels=range(6)), rtol=1e-15)
    print(f"({temperature}, {scores[0]:.15}, {scores[1]:.15}),")

print("logistic/mod.rs: C, objective, probabilities of the first image")
features, labels = case(60, 7, 5)
each = np.arange(len(labels))
outputs = lambda theta: features @ theta[:, :-1].T + theta[:, -1]
objective = lambda theta, c, offset: (
    -c * log_softmax(outputs(theta) + offset, axis=1)[each, labels].sum() + 0.5 * (theta[:, :-1] ** 2).sum()
)
for c in [0.01, 1.0, 100.0, 1e4]:
    fit = LogisticRegression(C=c, tol=1e-10, max_iter=100_000).fit(features, labels)
    theta = np.column_stack([fit.coef_, fit.intercept_])
    print(f"({c}, {objective(theta, c, 0.0):.12}, {np.round(fit.predict_proba(features)[0], 8).tolist()}),")

print("with an offset, by scipy: C, objective, probabilities of the first image")
offset = case(60, 5, 5)[0]


def cost(flat, c):
    theta = flat.reshape(5, 8)
    residual = softmax(outputs(theta) + offset, axis=1)
    residual[each, labels] -= 1.0
    gradient = c * residual.T @ np.column_stack([features, np.ones(len(labels))])
    gradient[:, :-1] += theta[:, :-1]
    return objective(theta, c, offset), gradient.ravel()


fit = minimize(cost, np.zeros(40), (0.1,), jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 10_000})
p = softmax(outputs(fit.x.reshape(5, 8)) + offset, axis=1)[0]
print(f"(0.1, {fit.fun:.12}, {np.round(p, 8).tolist()}),")

print("discriminant.rs: probabilities of the first image, all photos, and with as many photos as classes")


def discriminant(x, y, centre_of_all):
    """The formulas of discriminant.rs, by explicit inverses."""
    (n, width), classes = x.shape, y.max() + 1
    means = np.stack([x[y == c].mean(0) for c in range(classes)])
    middle = means.mean(0)
    rest = x - (middle if centre_of_all else means[y])
    s = rest.T @ rest / (n - (1 if centre_of_all else classes))
    gamma = width / (n - 1 + width)
    p = np.linalg.inv((1 - gamma) * s + gamma * np.trace(s) / width * np.eye(width))
    w = (means - middle) @ p
    b = -0.5 * ((means - middle) * w).sum(1) - w @ middle
    return softmax(x @ w.T + b, axis=1), gamma


found, gamma = discriminant(features, labels, False)
# scikit-learn divides the scatter by the photos, where this divides by those less the classes: the same, scaled.
lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=gamma, priors=np.full(5, 0.2)).fit(features, labels)
scaled = softmax((features @ lda.coef_.T + lda.intercept_ - np.log(0.2)) * (60 - 5) / 60, axis=1)
assert np.bincount(labels).min() == np.bincount(labels).max() and np.abs(scaled - found).max() < 1e-9
print(np.round(found[0], 8).tolist())
first = [int(np.flatnonzero(labels == c)[0]) for c in range(5)]
print(np.round(discriminant(features[first], labels[first], True)[0][0], 8).tolist())

print("counting.rs: shares of two kinds of logits, by photos and by classes")
offset = np.log(np.bincount(labels[:50]) / 50)
for parts in [(case(60, 5, 5)[0], features[:, :5] ** 2 / 5), (case(60, 5, 5)[0], -features[:, :5])]:
    for weights in [np.full(50, 1 / 50), 1 / (5 * np.bincount(labels[:50])[labels[:50]])]:

        def cost(a):
            z = log_softmax(a[0] * parts[0][:50] + a[1] * parts[1][:50] + offset, axis=1)
            return -(weights * z[np.arange(50), labels[:50]]).sum() + 0.5e-4 * (a**2).sum()

        fit = minimize(cost, [0.5, 0.5], method="L-BFGS-B", bounds=[(0, None)] * 2, options={"ftol": 1e-15, "gtol": 1e-12})
        print(f"({np.round(fit.x, 6).tolist()}, {fit.fun:.10})")
