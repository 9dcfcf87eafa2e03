"""The expected numbers of the test in src/train/metrics.rs, by scikit-learn.

Needs scikit-learn and numpy. The case: 40 images of 6 classes, of which class 5 has no image and class 4 is
never predicted.
"""

import numpy as np
from sklearn.metrics import brier_score_loss, confusion_matrix, f1_score, log_loss, precision_recall_fscore_support
from sklearn.metrics import top_k_accuracy_score

i, j = np.arange(40)[:, None], np.arange(6)[None, :]
labels = (3 * i + i // 4)[:, 0] % 5
logits = ((7 * i + 13 * j + 5 * i * j + i * i) % 23) / 4.0
logits[np.arange(40), labels] += 2.0
logits[:, 4] -= 10.0

predicted = logits.argmax(1)
right = predicted == labels


def softmax(temperature):
    powers = np.exp((logits - logits.max(1, keepdims=True)) / temperature)
    return powers / powers.sum(1, keepdims=True)


def expected_calibration_error(probabilities, bins=15):
    confidence = probabilities.max(1)
    error, edges = 0.0, np.linspace(0, 1, bins + 1)
    for low, high in zip(edges[:-1], edges[1:]):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error


every = range(6)
scores = precision_recall_fscore_support(labels, predicted, labels=every, zero_division=np.nan)
for name, values in zip(["precision", "recall", "f1", "images"], scores):
    print(name, values.tolist())
print("confusion", confusion_matrix(labels, predicted, labels=every).tolist())
print("top1", right.mean(), "top5", top_k_accuracy_score(labels, logits, k=5, labels=every))
print("macro f1", f1_score(labels, predicted, average="macro"))
for temperature in (1, 2.5):
    probabilities = softmax(temperature)
    print("temperature", temperature, "log loss", log_loss(labels, probabilities, labels=every), "brier",
          brier_score_loss(labels, probabilities, labels=every, scale_by_half=False),
          "ece", expected_calibration_error(probabilities))
