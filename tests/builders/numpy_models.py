"""The models in plain NumPy, from their definitions: value, gradient, minimisation.

Class resolution: features (R, d), one per target row (class), weighted by n_r.
"""

import numpy as np
import scipy.optimize
import scipy.special

import ufm

expit = scipy.special.expit
# A function of z_c - z_y and its derivative.
PAIRS = {
    ufm.PairwiseLogistic: (lambda x: np.logaddexp(0, x), expit),
    ufm.Exponential: (np.exp, np.exp),
    ufm.SquaredHinge: (
        lambda x: np.maximum(0, 1 + x) ** 2 / 2,
        lambda x: np.maximum(0, 1 + x),
    ),
}


def of_pairs(Z, own, value, slope):
    """Loss and gradient of rows: a function of what every other logit is above the own one."""
    above = Z - np.sum(np.where(own, Z, 0), axis=1, keepdims=True)
    slopes = np.where(own, 0, slope(above))
    gradient = slopes - own * slopes.sum(axis=1, keepdims=True)
    return np.sum(np.where(own, 0, value(above)), axis=1), gradient


def of_levels(Z, levels, thresholds):
    """Loss and gradient of rows of one logit: minus the log probability of an interval."""
    ends = np.array([-np.inf, *thresholds, np.inf])
    low, high = ends[levels, None], ends[levels + 1, None]
    losses = -np.log(expit(high - Z) - expit(low - Z))[:, 0]
    return losses, expit(Z - high) - expit(low - Z)


class Model:
    """A problem's numbers, copied out of it."""

    def __init__(self, problem):
        self.counts = np.asarray(problem.row_counts, np.float64)
        self.feature_weights = (
            self.counts if problem.one_hot else np.asarray(problem.row_weights, np.float64)
        )
        self.targets = problem.target_rows(np.float64, np)
        self.R, self.K = self.targets.shape[0], problem.num_outputs
        self.dims = problem.layer_dims
        self.shapes = [(o, i) for i, o in zip(self.dims[:-1], self.dims[1:], strict=True)]
        self.relu = problem.activation == "relu"
        self.nonnegative = problem.nonnegative_features
        self.use_bias = problem.use_bias
        self.ball = isinstance(problem.regularizer, ufm.NormBall)
        self.weights = np.broadcast_to(problem.regularizer.weights, (len(self.shapes),)).astype(
            float
        )
        self.features = float(problem.regularizer.features)
        self.bias = 0.0 if self.ball else float(problem.regularizer.bias)
        self.loss = problem.loss

    @property
    def num_factors(self):
        return len(self.shapes) + 1

    def rows(self, Z):
        """Loss and gradient of every class row."""
        Y = self.targets
        if isinstance(self.loss, ufm.SquaredError):
            return 0.5 * np.sum((Z - Y) ** 2, axis=1), Z - Y
        if isinstance(self.loss, tuple(PAIRS)):
            return of_pairs(Z, Y.max(axis=1, keepdims=True) == Y, *PAIRS[type(self.loss)])
        if isinstance(self.loss, ufm.BinaryCrossEntropy):
            return np.sum(np.logaddexp(0, Z) - Y * Z, axis=1), expit(Z) - Y
        if isinstance(self.loss, ufm.Ordinal):
            return of_levels(Z, np.argmax(Y, axis=1), np.asarray(self.loss.thresholds))
        shifted = Z - Z.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.sum(np.exp(shifted), axis=1, keepdims=True))
        p = np.exp(log_p)
        if isinstance(self.loss, ufm.Focal):
            g = float(self.loss.gamma)
            log_py = np.sum(Y * log_p, axis=1)
            rest = np.sum(p * (1 - Y), axis=1)
            slope = -(rest**g) + g * np.exp(log_py) * rest ** (g - 1) * log_py
            return -(rest**g) * log_py, slope[:, None] * (Y - p)
        alpha = float(self.loss.alpha) if isinstance(self.loss, ufm.LabelSmoothing) else 0.0
        mass = Y.sum(axis=1, keepdims=True)
        T = (1 - alpha) * Y + alpha * mass / self.K
        return -np.sum(T * log_p, axis=1), mass * p - T

    def activations(self, weights, H):
        """The input of every layer, and the logits without bias."""
        chain = [H]
        for W in weights[:-1]:
            hidden = chain[-1] @ W.T
            chain.append(np.maximum(hidden, 0) if self.relu else hidden)
        return chain, chain[-1] @ weights[-1].T

    def objective(self, weights, H, b=None):
        _, Z = self.activations(weights, H)
        losses, _ = self.rows(Z if b is None else Z + b)
        total = self.counts @ losses / self.counts.sum()
        if not self.ball:
            total += 0.5 * sum(self.weights * [np.sum(W**2) for W in weights])
            total += 0.5 * self.features * np.sum(self.feature_weights * np.sum(H**2, axis=1))
            total += 0.0 if b is None else 0.5 * self.bias * np.sum(b**2)
        return total

    def unpack(self, theta):
        sizes = [o * i for o, i in self.shapes] + [self.R * self.dims[0]]
        blocks = np.split(theta, np.cumsum(sizes))
        shapes = [*self.shapes, (self.R, self.dims[0])]
        blocks = [block.reshape(shape) for block, shape in zip(blocks, shapes, strict=False)]
        b = theta[sum(sizes) :] if self.use_bias else None
        if self.ball:  # the constraints hold with equality at the optimum
            radii = np.sqrt(self.K * np.array([*self.weights, self.features]))
            blocks = [
                r * block / np.linalg.norm(block) for r, block in zip(radii, blocks, strict=True)
            ]
        return blocks[:-1], blocks[-1], b

    def size(self):
        return sum(o * i for o, i in self.shapes) + self.R * self.dims[0] + self.K * self.use_bias

    def value_and_gradient(self, theta):
        weights, H, b = self.unpack(theta)
        chain, Z = self.activations(weights, H)
        _, slopes = self.rows(Z if b is None else Z + b)
        shares = self.counts / self.counts.sum()
        back = shares[:, None] * slopes
        grad_b = back.sum(axis=0)
        grads = []
        for layer in reversed(range(len(weights))):
            grads.append(back.T @ chain[layer])
            back = back @ weights[layer]
            if self.relu and layer > 0:
                back = back * (chain[layer] > 0)
        blocks, grads = [*weights, H], [*reversed(grads), back]
        if self.ball:
            raw = np.split(theta, np.cumsum([block.size for block in blocks]))
            tangents = []
            for v, block, g in zip(raw, blocks, grads, strict=False):
                unit = block / np.linalg.norm(block)
                tangents.append(
                    (g - np.sum(g * unit) * unit) * np.linalg.norm(block) / np.linalg.norm(v)
                )
            grads = tangents
        else:
            for i, decay in enumerate(self.weights):
                grads[i] = grads[i] + decay * weights[i]
            grads[-1] = grads[-1] + self.features * self.feature_weights[:, None] * H
            grad_b = grad_b if b is None else grad_b + self.bias * b
        parts = [g.ravel() for g in grads] + ([grad_b] if self.use_bias else [])
        return self.objective(weights, H, b), np.concatenate(parts)

    def minimise(self, starts, seed=0, scale=0.7):
        """Return the best (value, weights, features, bias) of several random starts."""
        rng = np.random.default_rng(seed)
        # A dense BFGS where it is small: the BLAS of L-BFGS-B waits for threads that a busy machine
        # lacks.
        arguments = {"method": "BFGS", "options": {"gtol": 1e-8, "maxiter": 5000}}
        if self.nonnegative or self.size() > 300:
            first = sum(o * i for o, i in self.shapes)
            last = first + self.R * self.dims[0]
            floor = [
                0 if self.nonnegative and first <= i < last else None for i in range(self.size())
            ]
            options = {"maxiter": 5000, "ftol": 1e-17, "gtol": 1e-11}
            arguments = {
                "method": "L-BFGS-B",
                "bounds": [(low, None) for low in floor],
                "options": options,
            }
        runs = []
        for _ in range(starts):
            start = scale * rng.normal(size=self.size())
            result = scipy.optimize.minimize(self.value_and_gradient, start, jac=True, **arguments)
            runs.append((result.fun, result.x))
        value, theta = min(runs, key=lambda run: run[0])
        return (value, *self.unpack(theta))


def realisation(problem, prediction, logits):
    """Return equally penalised factors with these logits less the bias, and the bias."""
    model = Model(problem)
    if model.nonnegative and not problem.one_hot:  # a coordinate for every label
        scale = np.sqrt(prediction.weight_gram[0, 0] * model.K / (model.K - 1))
        W, H = np.zeros(model.shapes[0]), np.zeros((model.R, model.dims[0]))
        W[:, : model.K] = scale * (np.eye(model.K) - 1 / model.K)
        lengths = np.sqrt(np.diag(prediction.feature_gram) / model.targets.sum(axis=1))
        H[:, : model.K] = lengths[:, None] * model.targets
        return [W], H, None
    if model.nonnegative and isinstance(model.loss, ufm.CrossEntropy):  # orthogonal class means
        lengths = np.sqrt(np.diag(prediction.feature_gram))
        W, H = np.zeros(model.shapes[0]), np.zeros((model.K, model.dims[0]))
        W[:, : model.K] = np.where(lengths > 0, logits.T / np.where(lengths > 0, lengths, 1), 0)
        H[:, : model.K] = np.diag(lengths)
        return [W], H, None
    # The constraints average the features within classes: every class counts once.
    root_counts = np.ones((model.R, 1)) if model.ball else np.sqrt(model.feature_weights)[:, None]
    diagonal = model.R == model.K and np.all(logits == np.diag(np.diag(logits)))
    if diagonal:  # keeps everything non-negative, as a ReLU needs
        order = np.argsort(-np.diag(root_counts * logits))
        U = V = np.eye(model.K)[:, order]
        s = np.diag(root_counts * logits)[order]
    else:
        U, s, Vt = np.linalg.svd(root_counts * logits)
        V = Vt.T
    rank = min(*model.dims, model.R)
    s = np.where(s > 1e-13 * s[0], s, 0)  # a root of rounding noise is no noise any more
    assert not np.any(s[rank:])
    q = model.num_factors
    if model.ball:
        scales = [np.sqrt(model.K * e / s.sum()) for e in model.weights]
        scales.append(np.sqrt(model.K * model.features / s.sum()))
    else:
        decays = np.array([*model.weights, model.features])
        scales = np.exp(np.mean(np.log(decays)) / 2) / np.sqrt(decays)
    root = s[:rank] ** (1 / q)
    weights = []
    for layer, (o, i) in enumerate(model.shapes):
        W = np.zeros((o, i))
        if layer == len(model.shapes) - 1:
            W[:, :rank] = V[:, :rank] * root
        else:
            W[:rank, :rank] = np.diag(root)
        weights.append(scales[layer] * W)
    H = np.zeros((model.R, model.dims[0]))
    H[:, :rank] = scales[-1] * U[:, :rank] * root / root_counts
    return weights, H, prediction.bias
