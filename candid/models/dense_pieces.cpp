// The pieces of a dense block in which memory, not arithmetic, is what takes time: each goes through its maps in
// tiles that stay in the cache, so that normalised maps and their gradients never reach memory as a whole.
// dense_pieces.py has the same functions in torch's own words, and says what each of them computes.

#include <ATen/ops/mm.h>

#include "pieces.h"

namespace {

constexpr int64_t TILE_BYTES = 1 << 18;  // a tile of maps and one of their gradients share the second-level cache

template <typename R>
inline R relu(R value) {
  return value <= 0 ? R(0) : value;  // what is no number stays none
}

// The gradient of relu's input, where that is scale * x + shift.
template <typename R>
inline R masked(R gradient, R scale, R x, R shift) {
  return scale * x + shift <= 0 ? R(0) : gradient;
}

// ---- One row each.

template <typename T, typename R>
void norm_relu_row(const T* x, const R* scale, const R* shift, T* out, int64_t width) {
  for_channels(width, [=](int64_t c) { put(out[c], relu(scale[c] * real(x[c]) + shift[c])); });
}

template <typename T, typename R>
void bias_relu_row(T* x, const R* bias, int64_t width) {
  for_channels(width, [=](int64_t c) { put(x[c], relu(real(x[c]) + bias[c])); });
}

template <typename T, typename R>
void norm_sums_row(const T* gradient, const T* x, const Norm<T>& norm, R* sum, R* product, int64_t width) {
  const R *scale = norm.scale, *shift = norm.shift, *mean = norm.mean;
  for_channels(width, [=](int64_t c) {
    const R value = real(x[c]), d = masked(real(gradient[c]), scale[c], value, shift[c]);
    sum[c] += d;
    product[c] += d * (value - mean[c]);
  });
}

template <typename T, typename R>
void norm_backward_row(const T* gradient, const T* x, const Norm<T>& norm, T* total, R* sum, R* product,
                       int64_t width) {
  const R *scale = norm.scale, *shift = norm.shift, *mean = norm.mean;
  for_channels(width, [=](int64_t c) {
    const R value = real(x[c]), d = masked(real(gradient[c]), scale[c], value, shift[c]);
    sum[c] += d;
    product[c] += d * (value - mean[c]);
    put(total[c], real(total[c]) + scale[c] * d);
  });
}

template <typename T, typename R>
void whole_norm_backward_row(const T* gradient, const T* x, const Norm<T>& norm, const R* constant, const R* factor,
                             T* out, int64_t width) {
  const R *scale = norm.scale, *shift = norm.shift, *mean = norm.mean;
  for_channels(width, [=](int64_t c) {
    const R value = real(x[c]), d = masked(real(gradient[c]), scale[c], value, shift[c]);
    put(out[c], scale[c] * d - constant[c] - factor[c] * (value - mean[c]));
  });
}

template <typename T, typename R>
void correct_row(const T* gradient, const T* x, const R* mean, const R* constant, const R* factor, T* out,
                 int64_t width) {
  for_channels(width, [=](int64_t c) {
    put(out[c], real(gradient[c]) - constant[c] - factor[c] * (real(x[c]) - mean[c]));
  });
}

template <typename T>
void multiply_row(T* x, const T* kept, int64_t width) {
  for_channels(width, [=](int64_t c) { put(x[c], real(x[c]) * real(kept[c])); });
}

// ---- Threads, tiles and sums.

// Pixels in a tile of maps, a multiple of 16.
template <typename T>
int64_t tile_of(int64_t width) {
  return std::max<int64_t>(16, TILE_BYTES / static_cast<int64_t>(width * sizeof(T)) / 16 * 16);
}

// ---- The pieces, as dense_pieces.py describes them.

Tensor norm_relu(const Tensor& maps, const Tensor& scale, const Tensor& shift) {
  Tensor out = at::empty(maps.sizes(), maps.options());
  for_type(maps, [&]<typename T>() {
    const int64_t pixels = pixels_in_row({maps});
    const Matrix<T> x(maps, pixels), y(out, pixels);
    const auto scales = repeated<T>(scale, pixels), shifts = repeated<T>(shift, pixels);
    for_tiles(maps.size(0) / pixels, SHORT_TILE, [&](int64_t, int64_t first, int64_t rows) {
      for (int64_t r = first; r < first + rows; ++r) {
        norm_relu_row(x.row(r), scales.data(), shifts.data(), y.row(r), x.width);
      }
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> append(const Tensor& maps, const Tensor& place) {
  std::tuple<Tensor, Tensor> found;
  for_type(maps, [&]<typename T>() {
    const Matrix<T> x(maps), y(place);
    Moments moments(x.width);
    for_tiles(maps.size(0), SHORT_TILE, [&](int64_t thread, int64_t first, int64_t rows) {
      for (int64_t r = first; r < first + rows; ++r) std::copy_n(x.row(r), x.width, y.row(r));
      moments.add<T>(thread, x.row(first), x.stride, rows);
    });
    found = moments.mean_and_variance<T>(maps, x.width);
  });
  return found;
}

Tensor norm_product(const Tensor& maps, const Tensor& scale, const Tensor& shift, const Tensor& weight,
                    const OptionalTensor& bias) {
  const int64_t num_out = weight.size(0);
  Tensor out = at::empty({maps.size(0), num_out}, maps.options());
  const Tensor transposed = weight.t();
  for_type(maps, [&]<typename T>() {
    const Matrix<T> x(maps), y(out);
    const auto *s = values_of<T>(scale), *t = values_of<T>(shift);
    const auto* b = bias ? values_of<T>(*bias) : nullptr;
    const int64_t tile = tile_of<T>(x.width);
    std::vector<Tensor> normalised(at::get_num_threads());
    for_tiles(maps.size(0), tile, [&](int64_t thread, int64_t first, int64_t rows) {
      Tensor& normal = normalised[thread];
      if (!normal.defined()) normal = at::empty({tile, x.width}, maps.options());
      const Matrix<T> a(normal);
      for (int64_t r = 0; r < rows; ++r) norm_relu_row(x.row(first + r), s, t, a.row(r), x.width);
      Tensor product = out.narrow(0, first, rows);
      at::mm_out(product, normal.narrow(0, 0, rows), transposed);
      for (int64_t r = first; b != nullptr && r < first + rows; ++r) bias_relu_row(y.row(r), b, num_out);
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> norm_sums(const Tensor& gradient, const Tensor& maps, const Tensor& scale,
                                     const Tensor& shift, const Tensor& mean) {
  std::tuple<Tensor, Tensor> found;
  for_type(maps, [&]<typename T>() {
    const int64_t pixels = pixels_in_row({gradient, maps});
    const Matrix<T> g(gradient, pixels), x(maps, pixels);
    const auto scales = repeated<T>(scale, pixels), shifts = repeated<T>(shift, pixels);
    const auto means = repeated<T>(mean, pixels);
    const Norm<T> norm(scales, shifts, means);
    Sums sums(x.width), products(x.width);
    for_tiles(maps.size(0) / pixels, SHORT_TILE, [&](int64_t thread, int64_t first, int64_t rows) {
      std::vector<Real<T>> sum(x.width, 0), product(x.width, 0);
      for (int64_t r = first; r < first + rows; ++r) {
        norm_sums_row(g.row(r), x.row(r), norm, sum.data(), product.data(), x.width);
      }
      sums.add(thread, sum.data());
      products.add(thread, product.data());
    });
    found = {sums.total<T>(maps, maps.size(1)), products.total<T>(maps, maps.size(1))};
  });
  return found;
}

std::tuple<Tensor, Tensor> norm_backward(const Tensor& gradient, const Tensor& maps, const Tensor& scale,
                                         const Tensor& shift, const Tensor& mean, const Tensor& gradients) {
  std::tuple<Tensor, Tensor> found;
  for_type(maps, [&]<typename T>() {
    const Matrix<T> g(gradient), x(maps), total(gradients);
    const Norm<T> norm(scale, shift, mean);
    Sums sums(x.width), products(x.width);
    for_tiles(maps.size(0), SHORT_TILE, [&](int64_t thread, int64_t first, int64_t rows) {
      std::vector<Real<T>> sum(x.width, 0), product(x.width, 0);
      for (int64_t r = first; r < first + rows; ++r) {
        norm_backward_row(g.row(r), x.row(r), norm, total.row(r), sum.data(), product.data(), x.width);
      }
      sums.add(thread, sum.data());
      products.add(thread, product.data());
    });
    found = {sums.total<T>(maps, x.width), products.total<T>(maps, x.width)};
  });
  return found;
}

Tensor correct(const Tensor& gradient, const Tensor& maps, const Tensor& mean, const Tensor& constant,
               const Tensor& factor) {
  Tensor out = at::empty(gradient.sizes(), gradient.options());
  for_type(maps, [&]<typename T>() {
    const Matrix<T> g(gradient), x(maps), y(out);
    const auto *m = values_of<T>(mean), *a = values_of<T>(constant), *b = values_of<T>(factor);
    for_tiles(maps.size(0), SHORT_TILE, [&](int64_t, int64_t first, int64_t rows) {
      for (int64_t r = first; r < first + rows; ++r) correct_row(g.row(r), x.row(r), m, a, b, y.row(r), x.width);
    });
  });
  return out;
}

// What a thread needs to take a tile back through a product.
struct Workspace {
  Tensor of_product, normal, of_normal, of_weight;
  void make(int64_t tile, const Tensor& maps, const Tensor& weight) {
    if (normal.defined()) return;
    of_product = at::empty({tile, weight.size(0)}, maps.options());
    normal = at::empty({tile, weight.size(1)}, maps.options());
    of_normal = at::empty({tile, weight.size(1)}, maps.options());
    of_weight = at::empty(weight.sizes(), maps.options());
  }
};

std::tuple<Tensor, Tensor, Tensor> norm_product_backward(
    const Tensor& gradient, const Tensor& product, const Tensor& scale2, const Tensor& shift2, const Tensor& mean2,
    const Tensor& constant2, const Tensor& factor2, const OptionalTensor& kept, const Tensor& maps,
    const Tensor& scale, const Tensor& shift, const Tensor& mean, const Tensor& weight, const Tensor& gradients) {
  std::tuple<Tensor, Tensor, Tensor> found;
  for_type(maps, [&]<typename T>() {
    const Matrix<T> g(gradient), z(product), x(maps), total(gradients);
    const std::optional<Matrix<T>> keep = kept ? std::optional<Matrix<T>>(*kept) : std::nullopt;
    const Norm<T> norm(scale, shift, mean), norm2(scale2, shift2, mean2);
    const auto *constant = values_of<T>(constant2), *factor = values_of<T>(factor2);
    const int64_t tile = tile_of<T>(x.width);
    Sums sums(x.width), products(x.width), weights(weight.numel());
    std::vector<Workspace> workspaces(at::get_num_threads());
    for_tiles(maps.size(0), tile, [&](int64_t thread, int64_t first, int64_t rows) {
      Workspace& space = workspaces[thread];
      space.make(tile, maps, weight);
      const Matrix<T> d_product(space.of_product), normal(space.normal), d_normal(space.of_normal);
      for (int64_t r = 0; r < rows; ++r) {
        T* d_row = d_product.row(r);
        whole_norm_backward_row(g.row(first + r), z.row(first + r), norm2, constant, factor, d_row, z.width);
        if (keep) multiply_row(d_row, keep->row(first + r), z.width);
        norm_relu_row(x.row(first + r), norm.scale, norm.shift, normal.row(r), x.width);
      }
      const Tensor d_rows = space.of_product.narrow(0, 0, rows);
      Tensor d_normal_rows = space.of_normal.narrow(0, 0, rows);
      at::mm_out(space.of_weight, d_rows.t(), space.normal.narrow(0, 0, rows));
      at::mm_out(d_normal_rows, d_rows, weight);
      std::vector<Real<T>> sum(x.width, 0), product_sum(x.width, 0);
      for (int64_t r = 0; r < rows; ++r) {
        norm_backward_row(d_normal.row(r), x.row(first + r), norm, total.row(first + r), sum.data(),
                          product_sum.data(), x.width);
      }
      sums.add(thread, sum.data());
      products.add(thread, product_sum.data());
      weights.add(thread, static_cast<const T*>(space.of_weight.const_data_ptr()));
    });
    found = {weights.total<T>(maps, weight.numel()).view(weight.sizes()), sums.total<T>(maps, x.width), products.total<T>(maps, x.width)};
  });
  return found;
}

}  // namespace

TORCH_LIBRARY(candid, library) {
  library.def("norm_relu(Tensor maps, Tensor scale, Tensor shift) -> Tensor");
  library.def("moments(Tensor maps) -> (Tensor, Tensor)");
  library.def("append(Tensor maps, Tensor(a!) place) -> (Tensor, Tensor)");
  library.def("correct(Tensor gradient, Tensor maps, Tensor mean, Tensor constant, Tensor factor) -> Tensor");
  library.def("norm_product(Tensor maps, Tensor scale, Tensor shift, Tensor weight, Tensor? bias) -> Tensor");
  library.def("norm_sums(Tensor gradient, Tensor maps, Tensor scale, Tensor shift, Tensor mean) -> (Tensor, Tensor)");
  library.def(
      "norm_backward(Tensor gradient, Tensor maps, Tensor scale, Tensor shift, Tensor mean, Tensor(a!) gradients) "
      "-> (Tensor, Tensor)");
  library.def(
      "norm_product_backward(Tensor gradient, Tensor product, Tensor scale2, Tensor shift2, Tensor mean2, "
      "Tensor constant2, Tensor factor2, Tensor? kept, Tensor maps, Tensor scale, Tensor shift, Tensor mean, "
      "Tensor weight, Tensor(a!) gradients) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(candid, CPU, library) {
  library.impl("norm_relu", &norm_relu);
  library.impl("moments", &moments);
  library.impl("append", &append);
  library.impl("correct", &correct);
  library.impl("norm_product", &norm_product);
  library.impl("norm_sums", &norm_sums);
  library.impl("norm_backward", &norm_backward);
  library.impl("norm_product_backward", &norm_product_backward);
}
