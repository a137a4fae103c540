// Batch normalisation with what follows it, and the way back through depthwise convolutions, for maps in channels-last
// memory. fused.py says when these are called.

#include <ATen/ops/empty_like.h>

#include <array>

#include "pieces.h"

namespace {

// ---- Batch normalisation as scale * x + shift, then clamped to [low, high]. What is no number stays none.

template <typename R>
inline R clamped(R value, R low, R high) {
  return value <= low ? low : value >= high ? high : value;
}

// The gradient of what was clamped.
template <typename R>
inline R passed(R gradient, R value, R low, R high) {
  return value <= low || value >= high ? R(0) : gradient;
}

template <typename T, typename R>
void norm_row(const T* x, const R* scale, const R* shift, R low, R high, T* out, int64_t width) {
#pragma omp simd
  for (int64_t c = 0; c < width; ++c) put(out[c], clamped(scale[c] * real(x[c]) + shift[c], low, high));
}

template <typename T, typename R>
void norm_sums_row(const T* gradient, const T* x, const Norm<T>& norm, R low, R high, R* sum, R* product,
                   int64_t width) {
  const R *scale = norm.scale, *shift = norm.shift, *mean = norm.mean;
#pragma omp simd
  for (int64_t c = 0; c < width; ++c) {
    const R value = real(x[c]), d = passed(real(gradient[c]), scale[c] * value + shift[c], low, high);
    sum[c] += d;
    product[c] += d * (value - mean[c]);
  }
}

template <typename T, typename R>
void norm_backward_row(const T* gradient, const T* x, const Norm<T>& norm, const R* constant, const R* factor, R low,
                       R high, T* out, int64_t width) {
  const R *scale = norm.scale, *shift = norm.shift, *mean = norm.mean;
#pragma omp simd
  for (int64_t c = 0; c < width; ++c) {
    const R value = real(x[c]), d = passed(real(gradient[c]), scale[c] * value + shift[c], low, high);
    put(out[c], scale[c] * d - constant[c] - factor[c] * (value - mean[c]));
  }
}

Tensor norm(const Tensor& maps, const Tensor& scale, const Tensor& shift, double low, double high) {
  Tensor out = at::empty(maps.sizes(), maps.options());
  for_type(maps, [&]<typename T>() {
    const int64_t pixels = pixels_in_row({maps});
    const Matrix<T> x(maps, pixels), y(out, pixels);
    const auto scales = repeated<T>(scale, pixels), shifts = repeated<T>(shift, pixels);
    const auto l = static_cast<Real<T>>(low), h = static_cast<Real<T>>(high);
    for_tiles(maps.size(0) / pixels, SHORT_TILE, [&](int64_t, int64_t first, int64_t rows) {
      for (int64_t r = first; r < first + rows; ++r) {
        norm_row(x.row(r), scales.data(), shifts.data(), l, h, y.row(r), x.width);
      }
    });
  });
  return out;
}

std::tuple<Tensor, Tensor> norm_sums(const Tensor& gradient, const Tensor& maps, const Tensor& scale,
                                     const Tensor& shift, const Tensor& mean, double low, double high) {
  std::tuple<Tensor, Tensor> found;
  for_type(maps, [&]<typename T>() {
    const int64_t pixels = pixels_in_row({maps, gradient});
    const Matrix<T> g(gradient, pixels), x(maps, pixels);
    const auto scales = repeated<T>(scale, pixels), shifts = repeated<T>(shift, pixels);
    const auto means = repeated<T>(mean, pixels);
    const Norm<T> norm(scales, shifts, means);
    const auto l = static_cast<Real<T>>(low), h = static_cast<Real<T>>(high);
    Sums sums(x.width), products(x.width);
    for_tiles(maps.size(0) / pixels, SHORT_TILE, [&](int64_t thread, int64_t first, int64_t rows) {
      std::vector<Real<T>> sum(x.width, 0), product(x.width, 0);
      for (int64_t r = first; r < first + rows; ++r) {
        norm_sums_row(g.row(r), x.row(r), norm, l, h, sum.data(), product.data(), x.width);
      }
      sums.add(thread, sum.data());
      products.add(thread, product.data());
    });
    found = {sums.total<T>(maps, maps.size(1)), products.total<T>(maps, maps.size(1))};
  });
  return found;
}

Tensor norm_backward(const Tensor& gradient, const Tensor& maps, const Tensor& scale, const Tensor& shift,
                     const Tensor& mean, const Tensor& constant, const Tensor& factor, double low, double high) {
  Tensor out = at::empty(maps.sizes(), maps.options());
  for_type(maps, [&]<typename T>() {
    const int64_t pixels = pixels_in_row({maps, gradient});
    const Matrix<T> g(gradient, pixels), x(maps, pixels), y(out, pixels);
    const auto scales = repeated<T>(scale, pixels), shifts = repeated<T>(shift, pixels);
    const auto means = repeated<T>(mean, pixels);
    const auto constants = repeated<T>(constant, pixels), factors = repeated<T>(factor, pixels);
    const Norm<T> norm(scales, shifts, means);
    const auto l = static_cast<Real<T>>(low), h = static_cast<Real<T>>(high);
    for_tiles(maps.size(0) / pixels, SHORT_TILE, [&](int64_t, int64_t first, int64_t rows) {
      for (int64_t r = first; r < first + rows; ++r) {
        norm_backward_row(g.row(r), x.row(r), norm, constants.data(), factors.data(), l, h, y.row(r), x.width);
      }
    });
  });
  return out;
}

// ---- Depthwise convolutions: what lies outside of the maps is read from a row of zeros.

template <typename T>
T* rows_of(const Tensor& maps) {
  TORCH_CHECK(maps.is_contiguous(at::MemoryFormat::ChannelsLast), "maps must be in channels-last memory");
  return static_cast<T*>(maps.data_ptr());
}

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

// Lines in a tile of about SHORT_TILE pixels.
inline int64_t lines_in_tile(const Tensor& maps) { return (SHORT_TILE + maps.size(3) - 1) / maps.size(3); }

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
  library.def("norm(Tensor maps, Tensor scale, Tensor shift, float low, float high) -> Tensor");
  library.def(
      "norm_sums(Tensor gradient, Tensor maps, Tensor scale, Tensor shift, Tensor mean, float low, float high) "
      "-> (Tensor, Tensor)");
  library.def(
      "norm_backward(Tensor gradient, Tensor maps, Tensor scale, Tensor shift, Tensor mean, Tensor constant, "
      "Tensor factor, float low, float high) -> Tensor");
  library.def("depthwise_backward(Tensor gradient, Tensor maps, Tensor weight, int stride) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(candid_layers, CPU, library) {
  library.impl("moments", &moments);
  library.impl("norm", &norm);
  library.impl("norm_sums", &norm_sums);
  library.impl("norm_backward", &norm_backward);
  library.impl("depthwise_backward", &depthwise_backward);
}
