"""Keras builders that tests defend: three styles, with batch norm, dropout and shortcuts."""

from __future__ import annotations

import os

import torch

from g2d.tasks.splits import Split, Splits

os.environ.setdefault("KERAS_BACKEND", "torch")  # before any test imports Keras

SHAPE = (9, 9, 3)


def splits(shape: tuple[int, ...] = SHAPE, n: int = 48) -> Splits:
    generator = torch.Generator().manual_seed(0)

    def part() -> Split:
        x = torch.rand(n, *shape, generator=generator)
        return Split(x, (x.flatten(1)[:, 0] * 3).long())

    return Splits(part(), part(), part(), part())


def shaken(model, seed=0):
    """A state as training might leave it: no statistic or bias is 0 or 1 any more."""
    draws, state = torch.Generator().manual_seed(seed), model.state_dict()
    fixed = {name for name, p in model.named_parameters() if not p.requires_grad}
    for name, t in state.items():
        if t.is_floating_point() and name not in fixed:
            moved = t + 0.2 * torch.randn(t.shape, generator=draws)
            state[name] = moved.abs() if name.endswith(("var", "variance")) else moved
    return state


def chain_norm():
    """Stride 2 and "same", norms before and behind a flattened image, a softmax at the end."""
    import keras
    from keras import layers

    return keras.Sequential([
        keras.Input(SHAPE),
        layers.Conv2D(6, 4, strides=2, padding="same", activation="relu"),
        layers.BatchNormalization(momentum=0.9),
        layers.MaxPooling2D(padding="same"),
        layers.Flatten(),
        layers.BatchNormalization(),
        layers.Dense(8, activation="tanh"),
        layers.Dense(3, activation="softmax"),
    ])  # fmt: skip


def chain_dropout():
    import keras
    from keras import layers

    return keras.Sequential([
        keras.Input(SHAPE),
        layers.Rescaling(2.0, -1.0),
        layers.Conv2D(4, 3, strides=2, padding="same", activation="relu"),
        layers.AveragePooling2D(2, padding="same"),
        layers.SpatialDropout2D(0.2),
        layers.Flatten(),
        layers.Dropout(0.3),
        layers.Dense(3),
    ])  # fmt: skip


def chain_shortcut():
    """A model within a chain, with a way around."""
    import keras
    from keras import layers

    given = keras.Input((9, 9, 4))
    found = layers.Conv2D(4, 3, padding="same", activation="gelu")(given)
    found = layers.Add()([given, layers.Conv2D(4, 3, padding="same")(found)])
    block = keras.Model(given, layers.ReLU()(found))
    return keras.Sequential([
        keras.Input(SHAPE), layers.Conv2D(4, 1), block, layers.GlobalAveragePooling2D(),
        layers.Dense(3), layers.Softmax(),
    ])  # fmt: skip


def graph_all():
    import keras
    from keras import layers, ops

    given = keras.Input(SHAPE)
    x = layers.Conv2D(4, 3, strides=2, padding="same", use_bias=False)(given)
    x = ops.relu(layers.BatchNormalization(scale=False)(x))
    y = x + layers.SeparableConv2D(4, 3, padding="same")(x)
    y = layers.Concatenate()([y, layers.DepthwiseConv2D(3, padding="same")(x)])
    y = layers.Dropout(0.1)(layers.ZeroPadding2D(1)(y))
    y = layers.LayerNormalization()(layers.Reshape((14, -1))(layers.Flatten()(y)))
    y = layers.GlobalMaxPooling1D()(layers.Conv1D(8, 3, padding="same")(y))
    return keras.Model(given, layers.Dense(3, activation="softmax")(y))


def own_class():
    """A class with a call() of its own, all three kinds in it."""
    import keras
    from keras import layers, ops

    class Own(keras.Model):
        def __init__(self, **more):
            super().__init__(**more)
            self.conv = layers.Conv2D(4, 3, strides=2, padding="same")
            self.norm, self.drop = layers.BatchNormalization(), layers.Dropout(0.2)
            self.flat, self.head = layers.Flatten(), layers.Dense(3, activation="softmax")

        def call(self, x, training=None):
            x = self.conv(x)
            x = ops.relu(x + self.norm(x, training=training))
            return self.head(self.drop(self.flat(x), training=training))

    return Own()


BUILDERS = (chain_norm, chain_dropout, chain_shortcut, graph_all, own_class)
TRANSLATED = BUILDERS[:-1]
