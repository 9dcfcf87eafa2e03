"""The expected numbers of the tests in src/stats, by scipy and scikit-learn.

Needs numpy, scipy and scikit-learn 1.9. The images, logits and labels are those of the tests, by the same formulas.
"""

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import binomtest
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
