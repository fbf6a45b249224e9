"""Steps of the custom ResNet in JAX and in Keras, in float32, as their guides show it. For step_time.py."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from contenders import Turns
from numpy.typing import NDArray

EPS, MOMENTUM = 1e-5, 0.9
LR = 1e-3


def train_with_jax(turns: Turns, images: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
    """Train in plain JAX with Adam. `images` are `[B,H,W,3]`."""
    import jax
    import jax.numpy as jnp

    def layer(key: Any, inputs: int, outputs: int) -> dict[str, Any]:
        filters = jax.random.normal(key, (3, 3, inputs, outputs)) * (2 / (9 * inputs)) ** 0.5
        return {"filters": filters, "scale": jnp.ones(outputs), "shift": jnp.zeros(outputs)}

    def apply(layer: dict[str, Any], x: Any, *, pool: bool = False) -> Any:
        x = jax.lax.conv_general_dilated(
            x, layer["filters"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        if pool:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return jax.nn.relu((x - mean) * jax.lax.rsqrt(variance + EPS) * layer["scale"] + layer["shift"])

    widths = [(3, 64), (64, 128), (128, 128), (128, 128), (128, 256), (256, 512), (512, 512), (512, 512)]
    keys = jax.random.split(jax.random.key(0), len(widths) + 1)
    parameters = {
        "layers": [layer(key, *channels) for key, channels in zip(keys, widths, strict=False)],
        "linear": jax.random.normal(keys[-1], (512, 10)) * 0.05,
    }

    def loss_of(parameters: Any, images: Any, labels: Any) -> Any:
        first, second, *branch1 = parameters["layers"][:4]
        third, fourth, *branch2 = parameters["layers"][4:]
        x = apply(second, apply(first, images), pool=True)
        x = x + apply(branch1[1], apply(branch1[0], x))
        x = apply(fourth, apply(third, x, pool=True), pool=True)
        x = x + apply(branch2[1], apply(branch2[0], x))
        logits = x.max((1, 2)) @ parameters["linear"]
        return -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels].mean()

    @jax.jit
    def step(parameters: Any, first: Any, second: Any, count: Any, images: Any, labels: Any) -> Any:
        loss, gradients = jax.value_and_grad(loss_of)(parameters, images, labels)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradients)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, gradients)
        scale = LR * jnp.sqrt(1 - 0.999**count) / (1 - 0.9**count)
        parameters = jax.tree.map(lambda p, m, v: p - scale * m / (jnp.sqrt(v) + 1e-8), parameters, first, second)
        return parameters, first, second, loss

    first = second = jax.tree.map(jnp.zeros_like, parameters)
    count = 0
    while True:
        count += 1
        parameters, first, second, loss = step(parameters, first, second, float(count), images, labels)
        loss.block_until_ready()
        turns.step_done()


def keras_on(backend: str) -> Callable[[Turns, NDArray[np.float32], NDArray[np.int64]], None]:
    """The training function for Keras 3 on `backend`: "jax" or "tensorflow"."""

    def train(turns: Turns, images: NDArray[np.float32], labels: NDArray[np.int64]) -> None:
        os.environ["KERAS_BACKEND"] = backend
        import keras
        from keras import layers

        def convolution(x: Any, outputs: int, *, pool: bool = False) -> Any:
            x = layers.Conv2D(outputs, 3, padding="same", use_bias=False)(x)
            if pool:
                x = layers.MaxPooling2D(2)(x)
            return layers.ReLU()(layers.BatchNormalization(epsilon=EPS, momentum=MOMENTUM)(x))

        inputs = keras.Input(images.shape[1:])
        x = convolution(convolution(inputs, 64), 128, pool=True)
        x = layers.Add()([x, convolution(convolution(x, 128), 128)])
        x = convolution(convolution(x, 256, pool=True), 512, pool=True)
        x = layers.Add()([x, convolution(convolution(x, 512), 512)])
        outputs = layers.Dense(10, use_bias=False)(layers.GlobalMaxPooling2D()(x))
        model = keras.Model(inputs, outputs)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer=keras.optimizers.Adam(LR), loss=loss)
        while True:
            model.train_on_batch(images, labels)
            turns.step_done()

    return train
