// Batch normalisation with what follows it, maxima of 2x2 pixels, and the way back through depthwise convolutions, for
// maps in channels-last memory. fused_layers.py says when these are called.

#include <ATen/ops/empty_like.h>
#include <ATen/ops/select.h>
#include <ATen/ops/zero.h>

#include <array>
#include <cmath>
#include <limits>
#include <string_view>

#include "pieces.h"

namespace {

// ---- Batch normalisation as scale * x + shift, with the activation behind it. What is no number stays none.

template <typename R>
struct Clamp {  // to [low, high]
  R low, high;
  R value(R x) const { return x <= low ? low : x >= high ? high : x; }
  R gradient(R of_value, R x) const { return x <= low || x >= high ? R(0) : of_value; }
};

// e^x for x <= 0, by a power of two and a polynomial of degree six; the library's is not made for vectors.
inline float falling_exp(float x) {
  constexpr float LOG2_E = 1.44269504f, LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f, ROUNDER = 12582912.0f;
  const float bounded = x < -87.0f ? -87.0f : x, shifted = bounded * LOG2_E + ROUNDER, whole = shifted - ROUNDER;
  const float r = bounded - whole * LN2_HIGH - whole * LN2_LOW;
  const float series =
      1 + r * (1 + r * (1 / 2.f + r * (1 / 6.f + r * (1 / 24.f + r * (1 / 120.f + r * (1 / 720.f))))));
  return series * std::bit_cast<float>((std::bit_cast<int32_t>(shifted) + 127) << 23);
}

template <typename R>
struct Gelu {  // x times the share of a normal distribution that lies below x: Hendrycks and Gimpel 2016
  R value(R x) const { return x * share(x, falling(x)); }
  R gradient(R of_value, R x) const {
    const R bell = falling(x);
    return of_value * (share(x, bell) + x * bell * R(0.39894228040143267794));
  }

 private:
  static float falling(float x) { return falling_exp(-x * x / 2); }
  static double falling(double x) { return std::exp(-x * x / 2); }
  static double share(double x, double) { return std::erfc(-x * 0.70710678118654752440) / 2; }
  static float share(float x, float bell) {  // Abramowitz and Stegun 7.1.26: within 1.5e-7
    const float size = x < 0 ? -x : x, t = 1 / (1 + 0.3275911f * 0.70710678f * size);
    const float tail =
        t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f)))) * bell / 2;
    return x < 0 ? tail : 1 - tail;
  }
};

// Calls `work` with the activation of that name.
template <typename R, typename Work>
void for_activation(std::string_view name, const Work& work) {
  constexpr R infinity = std::numeric_limits<R>::infinity();
  if (name == "none") return work(Clamp<R>{-infinity, infinity});
  if (name == "relu") return work(Clamp<R>{0, infinity});
  if (name == "relu6") return work(Clamp<R>{0, 6});
  if (name == "gelu") return work(Gelu<R>{});
  TORCH_CHECK(false, "the activation is ", name, "; expected none, relu, relu6 or gelu");
}

template <typename T, typename R, typename Activation>
void norm_row(const T* x, const R* scale, const R* shift, Activation activation, T* out, int64_t width) {
#pragma omp simd
  for (int64_t c = 0; c < width; ++c) put(out[c], activation.value(scale[c] * real(x[c]) + shift[c]));
}

template <typename T, typename R, typename Activation>
void norm_sums_row(const T* gradient, const T* x, const Norm<T>& norm, Activation activation, R* sum, R* product,
                   int64_t width) {
  const R *scale = norm.scale, *shift = norm.shift, *mean = norm.mean;
#pragma omp simd
  for (int64_t c = 0; c < width; ++c) {
    const R value = real(x[c]), d = activation.gradient(real(gradient[c]), scale[c] * value + shift[c]);
    sum[c] += d;
    product[c] += d * (value - mean[c]);
  }
}

template <typename T, typename R, typename Activation>
void norm_backward_row(const T* gradient, const T* x, const Norm<T>& norm, const R* constant, const R* factor,
                       Activation activation, T* out, int64_t width) {
  const R *scale = norm.scale, *shift = norm.shift, *mean = norm.mean;
#pragma omp simd
  for (int64_t c = 0; c < width; ++c) {
    const R value = real(x[c]), d = activation.gradient(real(gradient[c]), scale[c] * value + shift[c]);
    put(out[c], scale[c] * d - constant[c] - factor[c] * (value - mean[c]));
  }
}

Tensor norm(const Tensor& maps, const Tensor& scale, const Tensor& shift, std::string_view name) {
  Tensor out = at::empty(maps.sizes(), maps.options());
  for_type(maps, [&]<typename T>() {
    const int64_t pixels = pixels_in_row({maps});
    const Matrix<T> x(maps, pixels), y(out, pixels);
    const auto scales = repeated<T>(scale, pixels), shifts = repeated<T>(shift, pixels);
    for_activation<Real<T>>(name, [&](const auto& activation) {
      for_tiles(maps.size(0) / pixels, SHORT_TILE, [&](int64_t, int64_t first, int64_t rows) {
        for (int64_t r = first; r < first + rows; ++r) {
          norm_row(x.row(r), scales.data(), shifts.data(), activation, y.row(r), x.width);
        }
      });
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> norm_sums(const Tensor& gradient, const Tensor& maps, const Tensor& scale,
                                     const Tensor& shift, const Tensor& mean, std::string_view name) {
  std::tuple<Tensor, Tensor> found;
  for_type(maps, [&]<typename T>() {
    const int64_t pixels = pixels_in_row({maps, gradient});
    const Matrix<T> g(gradient, pixels), x(maps, pixels);
    const auto scales = repeated<T>(scale, pixels), shifts = repeated<T>(shift, pixels);
    const auto means = repeated<T>(mean, pixels);
    const Norm<T> norm(scales, shifts, means);
    Sums sums(x.width), products(x.width);
    for_activation<Real<T>>(name, [&](const auto& activation) {
      for_tiles(maps.size(0) / pixels, SHORT_TILE, [&](int64_t thread, int64_t first, int64_t rows) {
        std::vector<Real<T>> sum(x.width, 0), product(x.width, 0);
        for (int64_t r = first; r < first + rows; ++r) {
          norm_sums_row(g.row(r), x.row(r), norm, activation, sum.data(), product.data(), x.width);
        }
        sums.add(thread, sum.data());
        products.add(thread, product.data());
      });
    });
    found = {sums.total<T>(maps, maps.size(1)), products.total<T>(maps, maps.size(1))};
  });
  return found;
}

Tensor norm_backward(const Tensor& gradient, const Tensor& maps, const Tensor& scale, const Tensor& shift,
                     const Tensor& mean, const Tensor& constant, const Tensor& factor, std::string_view name) {
  Tensor out = at::empty(maps.sizes(), maps.options());
  for_type(maps, [&]<typename T>() {
    const int64_t pixels = pixels_in_row({maps, gradient});
    const Matrix<T> g(gradient, pixels), x(maps, pixels), y(out, pixels);
    const auto scales = repeated<T>(scale, pixels), shifts = repeated<T>(shift, pixels);
    const auto means = repeated<T>(mean, pixels);
    const auto constants = repeated<T>(constant, pixels), factors = repeated<T>(factor, pixels);
    const Norm<T> norm(scales, shifts, means);
    for_activation<Real<T>>(name, [&](const auto& activation) {
      for_tiles(maps.size(0) / pixels, SHORT_TILE, [&](int64_t, int64_t first, int64_t rows) {
        for (int64_t r = first; r < first + rows; ++r) {
          norm_backward_row(g.row(r), x.row(r), norm, constants.data(), factors.data(), activation, y.row(r), x.width);
        }
      });
    });
  });
  return out;
}

// ---- Maxima of 2x2 pixels; the first of several that are equal has the gradient. What is no number is the largest.

template <typename T>
T* rows_of(const Tensor& maps) {
  TORCH_CHECK(maps.is_contiguous(at::MemoryFormat::ChannelsLast), "maps must be in channels-last memory");
  return static_cast<T*>(maps.data_ptr());
}

// Lines in a tile of about SHORT_TILE pixels.
inline int64_t lines_in_tile(const Tensor& maps) { return (SHORT_TILE + maps.size(3) - 1) / maps.size(3); }

template <typename R>
inline bool beats(R value, R best) {
  return value > best || value != value;
}

template <typename T>
void pool_row(const T* a, const T* b, const T* c, const T* d, T* out, int64_t channels) {
#pragma omp simd
  for (int64_t i = 0; i < channels; ++i) {
    auto best = real(a[i]);
    best = beats(real(b[i]), best) ? real(b[i]) : best;
    best = beats(real(c[i]), best) ? real(c[i]) : best;
    best = beats(real(d[i]), best) ? real(d[i]) : best;
    put(out[i], best);
  }
}

template <typename T>
void pool_backward_row(const T* gradient, const T* a, const T* b, const T* c, const T* d, T* of_a, T* of_b, T* of_c,
                       T* of_d, int64_t channels) {
#pragma omp simd
  for (int64_t i = 0; i < channels; ++i) {
    auto best = real(a[i]);
    const bool b_wins = beats(real(b[i]), best);
    best = b_wins ? real(b[i]) : best;
    const bool c_wins = beats(real(c[i]), best);
    best = c_wins ? real(c[i]) : best;
    const bool d_wins = beats(real(d[i]), best);
    const auto g = real(gradient[i]), none = g * 0;
    put(of_a[i], b_wins || c_wins || d_wins ? none : g);
    put(of_b[i], b_wins && !c_wins && !d_wins ? g : none);
    put(of_c[i], c_wins && !d_wins ? g : none);
    put(of_d[i], d_wins ? g : none);
  }
}

// Calls work(offset of the upper left one of four pixels in `maps`, offset of their maximum) for all of `pooled`.
template <typename Work>
void for_squares(const Tensor& maps, const Tensor& pooled, const Work& work) {
  const int64_t channels = maps.size(1), height = pooled.size(2), width = pooled.size(3);
  for_tiles(pooled.size(0) * height, lines_in_tile(pooled), [&](int64_t, int64_t first, int64_t lines) {
    for (int64_t line = first; line < first + lines; ++line) {
      const int64_t above = (line / height * maps.size(2) + line % height * 2) * maps.size(3);
      for (int64_t x = 0; x < width; ++x) work((above + 2 * x) * channels, (line * width + x) * channels);
    }
  });
}

Tensor pool(const Tensor& maps) {
  Tensor out = at::empty({maps.size(0), maps.size(1), maps.size(2) / 2, maps.size(3) / 2},
                         maps.options().memory_format(at::MemoryFormat::ChannelsLast));
  const int64_t channels = maps.size(1), line = maps.size(3) * channels;
  for_type(maps, [&]<typename T>() {
    const T* x = rows_of<T>(maps);
    T* y = rows_of<T>(out);
    for_squares(maps, out, [&](int64_t from, int64_t to) {
      const T* a = x + from;
      pool_row(a, a + channels, a + line, a + line + channels, y + to, channels);
    });
  });
  return out;
}

Tensor pool_backward(const Tensor& gradient, const Tensor& maps) {
  Tensor out = at::empty_like(maps);
  for (const int64_t side : {2, 3}) {
    if (maps.size(side) % 2) out.select(side, -1).zero_();  // which no square covers
  }
  const int64_t channels = maps.size(1), line = maps.size(3) * channels;
  for_type(maps, [&]<typename T>() {
    const T *x = rows_of<T>(maps), *g = rows_of<T>(gradient);
    T* y = rows_of<T>(out);
    for_squares(maps, gradient, [&](int64_t from, int64_t to) {
      const T* a = x + from;
      T* of_a = y + from;
      pool_backward_row(g + to, a, a + channels, a + line, a + line + channels, of_a, of_a + channels, of_a + line,
                        of_a + line + channels, channels);
    });
  });
  return out;
}

// ---- Depthwise convolutions: what lies outside of the maps is read from a row of zeros.

// Which of `own` pixels in a line each of `asked` pixels meets, tap by tap, times `step`; -1 where there is none.
// Pixels of the output ask for those of the input that they are made of, or, if `back`, the other way round.
template <int SIZE>
std::vector<int64_t> meetings(int64_t asked, int64_t own, int64_t stride, int64_t step, bool back) {
  std::vector<int64_t> found;
  for (int64_t pixel = 0; pixel < asked; ++pixel) {
    for (int64_t tap = 0; tap < SIZE; ++tap) {
      const int64_t shift = tap - SIZE / 2, place = back ? (pixel - shift) / stride : pixel * stride + shift;
      const bool meets = place >= 0 && place < own && (!back || place * stride == pixel - shift);
      found.push_back(meets ? place * step : -1);
    }
  }
  return found;
}

// The pixels [SIZE * SIZE] of `maps` that each pixel of `asking` meets.
template <typename T, int SIZE>
struct Window {
  const T* data;
  std::vector<T> zeros;
  int64_t channels, image, width;  // values in an image of `maps`; pixels in a line of `asking`
  std::vector<int64_t> rows, columns;
  using Taps = std::array<const T*, SIZE * SIZE>;

  Window(const Tensor& maps, const Tensor& asking, int64_t stride, bool back)
      : data(rows_of<T>(maps)),
        zeros(maps.size(1), T(0)),
        channels(maps.size(1)),
        image(maps.stride(0)),
        width(asking.size(3)),
        rows(meetings<SIZE>(asking.size(2), maps.size(2), stride, maps.size(3) * channels, back)),
        columns(meetings<SIZE>(width, maps.size(3), stride, channels, back)) {}

  // Calls work(taps, pixel) for all pixels in some lines of `asking`.
  template <typename Work>
  void for_lines(int64_t first, int64_t lines, const Work& work) const {
    Taps taps;
    const int64_t height = static_cast<int64_t>(rows.size()) / SIZE;
    for (int64_t line = first; line < first + lines; ++line) {
      const T* origin = data + line / height * image;
      const int64_t* row = rows.data() + line % height * SIZE;
      for (int64_t pixel = 0; pixel < width; ++pixel) {
        const int64_t* column = columns.data() + pixel * SIZE;
        for (int64_t t = 0; t < SIZE * SIZE; ++t) {
          const int64_t y = row[t / SIZE], x = column[t % SIZE];
          taps[t] = (y | x) < 0 ? zeros.data() : origin + y + x;
        }
        work(taps, line * width + pixel);
      }
    }
  }
};

template <typename T, size_t TAPS, typename R>
void filter_row(const std::array<const T*, TAPS>& taps, const R* weight, T* out, int64_t channels) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    R sum = 0;
#pragma GCC unroll 25
    for (size_t t = 0; t < TAPS; ++t) sum += real(taps[t][c]) * weight[t * channels + c];
    put(out[c], sum);
  }
}

template <typename T, size_t TAPS, typename R>
void weight_row(const std::array<const T*, TAPS>& taps, const T* gradient, R* sums, int64_t channels) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    const R d = real(gradient[c]);
#pragma GCC unroll 25
    for (size_t t = 0; t < TAPS; ++t) sums[t * channels + c] += d * real(taps[t][c]);
  }
}

// A weight [channels, 1, SIZE, SIZE] as [SIZE * SIZE, channels].
template <typename T>
std::vector<Real<T>> by_tap(const Tensor& weight) {
  const auto* values = values_of<T>(weight);
  const int64_t channels = weight.size(0), taps = weight.numel() / channels;
  std::vector<Real<T>> found(weight.numel());
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t t = 0; t < taps; ++t) found[t * channels + c] = values[c * taps + t];
  }
  return found;
}

// Calls `work` with the type of the maps and the kernel's size in px.
template <typename Work>
void for_type_and_size(const Tensor& maps, const Tensor& weight, const Work& work) {
  for_type(maps, [&]<typename T>() {
    switch (weight.size(2)) {
      case 3: return work.template operator()<T, 3>();
      case 5: return work.template operator()<T, 5>();
      default: TORCH_CHECK(false, "the kernel has ", weight.size(2), " px; expected 3 or 5");
    }
  });
}

// Every pixel of `out` from those of `maps` that it meets.
template <typename T, int SIZE>
void filter(const Tensor& maps, const Tensor& weight, int64_t stride, bool back, const Tensor& out) {
  const Window<T, SIZE> window(maps, out, stride, back);
  const auto weights = by_tap<T>(weight);
  T* results = rows_of<T>(out);
  for_tiles(out.size(0) * out.size(2), lines_in_tile(out), [&](int64_t, int64_t first, int64_t lines) {
    window.for_lines(first, lines, [&](const auto& taps, int64_t pixel) {
      filter_row(taps, weights.data(), results + pixel * window.channels, window.channels);
    });
  });
}

std::tuple<Tensor, Tensor> depthwise_backward(const Tensor& gradient, const Tensor& maps, const Tensor& weight,
                                              int64_t stride) {
  Tensor of_maps = at::empty_like(maps), of_weight;
  for_type_and_size(maps, weight, [&]<typename T, int SIZE>() {
    filter<T, SIZE>(gradient, weight, stride, true, of_maps);
    const Window<T, SIZE> window(maps, gradient, stride, false);
    const T* g = rows_of<T>(gradient);
    Sums sums(weight.numel());
    for_tiles(gradient.size(0) * gradient.size(2), lines_in_tile(gradient),
              [&](int64_t thread, int64_t first, int64_t lines) {
                std::vector<Real<T>> sum(weight.numel(), 0);
                window.for_lines(first, lines, [&](const auto& taps, int64_t pixel) {
                  weight_row(taps, g + pixel * window.channels, sum.data(), window.channels);
                });
                sums.add(thread, sum.data());
              });
    of_weight = sums.total<T>(maps, weight.numel()).view({SIZE * SIZE, -1}).t().reshape(weight.sizes());
  });
  return {of_maps, of_weight};
}

}  // namespace

TORCH_LIBRARY(candid_layers, library) {
  library.def("moments(Tensor maps) -> (Tensor, Tensor)");
  library.def("norm(Tensor maps, Tensor scale, Tensor shift, str activation) -> Tensor");
  library.def(
      "norm_sums(Tensor gradient, Tensor maps, Tensor scale, Tensor shift, Tensor mean, str activation) "
      "-> (Tensor, Tensor)");
  library.def(
      "norm_backward(Tensor gradient, Tensor maps, Tensor scale, Tensor shift, Tensor mean, Tensor constant, "
      "Tensor factor, str activation) -> Tensor");
  library.def("pool(Tensor maps) -> Tensor");
  library.def("pool_backward(Tensor gradient, Tensor maps) -> Tensor");
  library.def("depthwise_backward(Tensor gradient, Tensor maps, Tensor weight, int stride) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(candid_layers, CPU, library) {
  library.impl("moments", &moments);
  library.impl("norm", &norm);
  library.impl("norm_sums", &norm_sums);
  library.impl("norm_backward", &norm_backward);
  library.impl("pool", &pool);
  library.impl("pool_backward", &pool_backward);
  library.impl("depthwise_backward", &depthwise_backward);
}
