"""The specification: one row a form of an op, its rule as text."""

# ruff: noqa: E501  (a row of a table is a line)

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from tests.rules.one_op import Case


def depthwise(x: jax.Array, w: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        x, w, (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"), feature_group_count=8
    )


def per_example_gradient(
    w: jax.Array, images: jax.Array, layout: tuple[str, str, str] = ("NCHW", "OIHW", "NCHW")
) -> jax.Array:
    """The gradient of a weight for each image by itself, as a convolution with groups."""

    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        y = lax.conv_general_dilated(x[None], w, (1, 1), "SAME", dimension_numbers=layout)
        return (y**2).sum()

    return jax.vmap(jax.grad(loss), (None, 0))(w, images)


CASES = [
    # pointwise
    Case("add", lax.add, "f32[4,6] f32[4,6]", "a b, a b -> a b"),
    Case("mul", lambda x: 2.0 * x, "f32[4,6]", "., a b -> a b"),
    Case("exp", jnp.exp, "f32[]", ". -> ."),
    Case("logistic", jax.nn.sigmoid, "f32[4,1,6]", "a 1 c -> a 1 c"),
    Case("select_n", lax.select_n, "bool[4,6] f32[4,6] f32[4,6]", "a b, a b, a b -> a b"),
    Case("select_n", lax.select_n, "bool[] f32[4,6] f32[4,6]", "., a b, a b -> a b"),
    Case("clamp", lax.clamp, "f32[] f32[4,6] f32[]", "., a b, . -> a b"),
    Case("convert_element_type", lambda x: x.astype(jnp.bfloat16), "f32[4,6]", "a b -> a b"),
    Case("integer_pow", lambda x: x**3, "f32[4]", "a -> a"),
    Case("bitcast_convert_type", lambda x: lax.bitcast_convert_type(x, jnp.uint8), "f32[4,6]", "a b -> a b c!"),
    Case("bitcast_convert_type", lambda x: lax.bitcast_convert_type(x, jnp.float32), "u8[4,6,4]", "a b c! -> a b"),
    Case("optimization_barrier", lambda x, y: lax.optimization_barrier((x, y)), "f32[4,6] f32[8]", "a b, c -> a b, c"),
    Case("reduce_precision", partial(lax.reduce_precision, exponent_bits=5, mantissa_bits=10), "f32[4,6]", "a b -> a b"),
    # matmul
    Case("dot_general", jnp.matmul, "f32[4,6] f32[6,8]", "i k, k j -> i j"),
    Case("dot_general", jnp.matmul, "f32[6] f32[6]", "k, k -> ."),
    Case("dot_general", jnp.matmul, "f32[2,4,6] f32[2,6,8]", "b i k, b k j -> b i j"),
    Case("dot_general", partial(jnp.einsum, "bqhd,bkhd->bhqk"), "f32[2,4,6,8] f32[2,12,6,8]", "b i b1 k, b j b1 k -> b b1 i j"),
    Case("dot_general", partial(jnp.einsum, "bsnh,nhd->bsd"), "f32[2,4,6,8] f32[6,8,10]", "i i1 k1 k, k1 k j -> i i1 j"),
    Case("dot_general", lambda x, y: lax.dot(x, y, preferred_element_type=jnp.int32), "i8[4,6] i8[6,8]", "i k, k j -> i j"),
    Case("ragged_dot_general", lax.ragged_dot, "f32[8,6] f32[2,6,4] i32[2]", "m! k, g! k n, g! -> m! n"),
    # convolution
    Case("conv_general_dilated", lambda x, w: lax.conv(x, w, (1, 1), "SAME"), "f32[2,4,8,8] f32[6,4,3,3]", "n i sa! sb!, o i ta! tb! -> n o ua! ub!"),
    Case("conv_general_dilated", lambda x, w: lax.conv(x, w, (1, 1), "SAME"), "f32[2,4,8,8] f32[6,4,1,1]", "n i sa sb, o i 1 1 -> n o sa sb"),
    Case("conv_general_dilated", lambda x, w: lax.conv_general_dilated(x, w, (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"), feature_group_count=2), "f32[2,8,8] f32[3,4,12]", "n! sa! (g! i!), ta! i! (g! o!) -> n! ua! (g! o!)"),
    Case("conv_general_dilated", lambda x, w: lax.conv_general_dilated(x, w, (1,), "SAME", batch_group_count=2), "f32[4,8,8] f32[12,8,3]", "(g n!) i sa!, (g o!) i ta! -> n! (g o!) ua!"),
    Case("conv_general_dilated", depthwise, "f32[4,8,8] f32[3,1,16]", "n sa! g, ta! 1 (g o!) -> n ua! (g o!)"),
    Case("conv_general_dilated", jax.grad(lambda w, x: depthwise(x, w).sum()), "f32[3,1,16] f32[4,8,8]", "i sa! g, i ta! (g o!) -> ua! 1 (g o!)"),
    Case("conv_general_dilated", jax.grad(lambda x, w: depthwise(x, w).sum()), "f32[4,8,8] f32[3,1,16]", "n! sa! (g! i!), ta! g! i! -> n! ua! g!"),
    Case("conv_general_dilated", per_example_gradient, "f32[4,2,3,3] f32[4,2,8,8]", "g n sa! sb!, 1 (g o!) ta! tb! -> (g o!) n ua! ub!"),
    Case("conv_general_dilated", per_example_gradient, "f32[4,1,3,3] f32[4,1,8,8]", "g 1 sa! sb!, 1 (g o!) ta! tb! -> (g o!) 1 ua! ub!"),
    Case("conv_general_dilated", per_example_gradient, "f32[4,2,3,3] f32[8,2,8,8]", "g n sa! sb!, 1 (g o!) ta! tb! -> (g o!) n ua! ub!"),
    Case("conv_general_dilated", partial(per_example_gradient, layout=("NHWC", "HWIO", "NHWC")), "f32[3,3,2,4] f32[4,8,8,2]", "g! sa! sb! n, 1 ta! tb! (g! o!) -> ua! ub! n (g! o!)"),
    # views
    Case("reshape", lambda x: x.reshape(8, 6), "f32[2,4,6]", "a b c -> (a b) c"),
    Case("reshape", lambda x: x.reshape(2, 4, 6), "f32[8,6]", "(a b) c -> a b c"),
    Case("reshape", lambda x: x.reshape(4, 6), "f32[2,12]", "a (b c) -> (a b) c"),
    Case("reshape", lambda x: x.reshape(4, 1, 2, 6), "f32[8,1,6]", "(a b) 1 c -> a 1 b c"),
    Case("reshape", lambda x: x.reshape(4, 6), "f32[6,4]", "(a b!) e! -> (a c!) d!"),
    Case("reshape", lambda x: x.reshape(3, 2, 8), "f32[2,3,8]", "a! c! e -> b! d! e"),
    Case("reshape", lambda x: x.reshape(1, 1), "f32[]", ". -> 1 1"),
    Case("transpose", lambda x: x.transpose(2, 0, 1), "f32[2,4,6]", "a b c -> c a b"),
    Case("broadcast_in_dim", lambda x: lax.broadcast_in_dim(x, (4, 6, 8), (0, 2)), "f32[4,1]", "a 1 -> a b c"),
    Case("broadcast_in_dim", lambda: jnp.zeros((4, 6)), "", ". -> a b"),
    Case("iota", lambda: lax.broadcasted_iota(jnp.int32, (4, 6), 1), "", " -> a b"),
    Case("squeeze", lambda x: x.squeeze(1), "f32[4,1,6]", "a 1 c -> a c"),
    Case("rev", lambda x: lax.rev(x, (1,)), "f32[4,6]", "a b! -> a b!"),
    Case("slice", lambda x: x[:, 1:4], "f32[4,6]", "a b! -> a c!"),
    Case("pad", lambda x: jnp.pad(x, ((0, 0), (1, 0))), "f32[4,6]", "a b!, . -> a c!"),
    Case("concatenate", lambda x, y: jnp.concatenate([x, y], 1), "f32[4,6] f32[4,2]", "a c!, a d! -> a e!"),
    Case("split", lambda x: jnp.split(x, 2, 1), "f32[4,6]", "a c! -> a d!, a e!"),
    Case("tile", lambda x: jnp.tile(x, (2, 1)), "f32[4,6]", "a b -> (c a) b"),
    Case("stack", lambda x, y: jnp.stack([x, y], 1), "f32[4,6] f32[4,6]", "a c, a c -> a b! c"),
    Case("unstack", lambda x: jnp.unstack(x, axis=1), "f32[4,2,6]", "a b! c -> a c, a c"),
    # reductions
    Case("reduce_sum", lambda x: x.sum(1), "f32[4,6]", "a b -> a"),
    Case("reduce_sum", jnp.sum, "f32[4,6]", "a b -> ."),
    Case("reduce_max", lambda x: x.max(0), "f32[4,6]", "a b -> b", reduce="max"),
    Case("reduce_min", lambda x: x.min(0), "f32[4,6]", "a b -> b", reduce="min"),
    Case("reduce_max", lambda x: lax.reduce_max_p.bind(x, axes=(0,), out_sharding=None), "c64[4,6]", "a! b -> b", reduce="max"),
    Case("reduce_prod", lambda x: x.prod(0), "f32[4,6]", "a b -> b", reduce="prod"),
    Case("reduce_and", lambda x: x.all(0), "bool[4,6]", "a b -> b", reduce="and"),
    Case("reduce_or", lambda x: x.any(0), "bool[4,6]", "a b -> b", reduce="or"),
    Case("argmax", lambda x: x.argmax(1), "f32[4,6]", "a b! -> a"),
    Case("cumsum", lambda x: x.cumsum(1), "f32[4,6]", "a b! -> a b!"),
    Case("reduce_window_sum", lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2), (1, 2), "VALID"), "f32[4,6]", "a c! -> a d!"),
    Case("psum", jax.vmap(lambda x: lax.psum(x, "v"), axis_name="v", out_axes=None), "f32[4,6]", "a b -> b"),
    Case("pmax", jax.vmap(lambda x: lax.pmax(x, "v"), axis_name="v", out_axes=None), "f32[4,6]", "a b -> b", reduce="max"),
    # order
    Case("sort", lambda x: lax.sort(x, dimension=0), "f32[4,6]", "a! b -> a! b"),
    Case("sort", lambda x, y: lax.sort((x, y), num_keys=1), "f32[4,6] i32[4,6]", "a b!, a b! -> a b!, a b!"),
    Case("top_k", lambda x: lax.top_k(x, 2), "f32[4,6]", "a b! -> a c!, a c!"),
    # indices
    Case("gather", lambda t, i: t[i], "f32[16,6] i32[2,4]", "e c, a b 1 -> a b c"),
    Case("gather", lambda t, i: jnp.take(t, i, axis=0), "f32[16,6] i32[4]", "d b, a 1 -> a b"),
    Case("gather", lambda x, i: jnp.take_along_axis(x, i, 1), "f32[4,6] i32[4,2]", "a d, a b 1 -> a b"),
    Case("gather", lambda x, i: x[i, i], "f32[4,6] i32[2]", "c d, a b! -> a"),
    Case("gather", lambda x, i: x[:, i], "f32[4,6] i32[2]", "a d, b 1 -> a b"),
    Case("dynamic_slice", lambda x, i: lax.dynamic_slice(x, (0, i), (4, 2)), "f32[4,6] i32[]", "a b!, ., . -> a c!"),
    Case("dynamic_update_slice", lambda x, u, i: lax.dynamic_update_slice(x, u, (0, i)), "f32[4,6] f32[4,2] i32[]", "a b!, a c!, ., . -> a b!"),
    Case("dynamic_update_slice", lambda x, u, i: lax.dynamic_update_slice(x, u, (i,)), "f32[8] f32[1] i32[]", "a, 1, . -> a"),
    Case("dynamic_update_slice", lambda x, u, i: lax.dynamic_update_slice(x, u, (0, i, 0)), "f32[4,8,6] f32[4,1,6] i32[]", "a b c, a 1 c, ., ., . -> a b c"),
    Case("dynamic_update_slice", lambda x, u, i: lax.dynamic_update_slice(x, u, (i + 1, i + 2)), "f32[8,8] f32[5,3] i32[]", "a! b!, c! d!, ., . -> a! b!"),
    Case("scatter-add", lambda x, i, u: x.at[i].add(u), "f32[16,6] i32[2,4] f32[2,4,6]", "a b, c d 1, c d b -> a b"),
    Case("scatter-add", lambda x, i, u: x.at[i, i].add(u), "f32[4,6] i32[2] f32[2]", "a b, c d!, c -> a b"),
    Case("scatter-mul", lambda x, i, u: x.at[i].mul(u), "f32[16,6] i32[4] f32[4,6]", "a b, c 1, c b -> a b", reduce="prod"),
    Case("scatter-max", lambda x, i, u: x.at[i].max(u), "f32[16,6] i32[4] f32[4,6]", "a b, c 1, c b -> a b", reduce="max"),
    Case("scatter-min", lambda x, i, u: x.at[i].min(u), "f32[16,6] i32[4] f32[4,6]", "a b, c 1, c b -> a b", reduce="min"),
    Case("scatter", lambda x, i, u: x.at[i].set(u), "f32[16,6] i32[4] f32[4,6]", "a b, c! 1, c! b -> a b"),
    Case("scatter-add", jax.grad(lambda x, i: jnp.take_along_axis(x, i, 1).sum()), "f32[4,6] i32[4,2]", "a b, a d 1, a d -> a b"),
    # random bits
    Case("random_bits", lambda k: jax.random.bits(k, (4, 6)), "key[]", ". -> a b"),
    Case("random_bits", jax.vmap(lambda k: jax.random.bits(k, (6,))), "key[4]", "a -> a b"),
    Case("random_bits", lambda k: jax.random.bits(k, (4, 6)), "rbg[]", ". -> a! b!"),
    Case("random_split", lambda k: jax.random.split(k, 4), "key[]", ". -> a"),
    Case("random_fold_in", jax.vmap(jax.random.fold_in), "key[4] u32[4]", "a, a -> a"),
    Case("random_seed", jax.vmap(jax.random.key), "i32[4]", "a -> a"),
    Case("random_unwrap", jax.random.key_data, "key[4]", "a -> a b!"),
    Case("random_wrap", jax.random.wrap_key_data, "u32[4,2]", "a b! -> a"),
    Case("random_clone", jax.random.clone, "key[4]", "a -> a"),
    # linear algebra and transforms
    Case("fft", jnp.fft.rfft, "f32[4,6]", "a b! -> a c!"),
    Case("cholesky", lax.linalg.cholesky, "f32[2,6,6]", "a b! c! -> a d! e!"),
    Case("triangular_solve", partial(lax.linalg.triangular_solve, left_side=True), "f32[2,6,6] f32[2,6,4]", "a b! c!, a c! d! -> a c! d!"),
    Case("qr", lambda x: lax.linalg.qr_p.bind(x, pivoting=False, full_matrices=False, use_magma=None), "f32[2,6,6]", "a b! c! -> a d! e!, a f! g!"),
    Case("eigh", lax.linalg.eigh, "f32[2,6,6]", "a b! c! -> a d! e!, a f!"),
]  # fmt: skip
