// What the compiled pieces share: types of maps, threads, tiles and sums.
//
// Maps are matrices [pixels, channels] of float, double or bfloat16; a row may lie further from the next than it is
// long, as in a prefix of a wider buffer. Vectors [channels] are float; for maps of double they are double.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>
#include <torch/library.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t SHORT_TILE = 256;  // pixels that are summed up in the maps' own precision
constexpr int64_t WIDE_ROW = 256;    // values
constexpr int64_t LONG_VECTOR = 32;  // values of 16 bits in 64 bytes

// What vectors and sums are made of.
template <typename T>
using Real = std::conditional_t<std::is_same_v<T, double>, double, float>;

// A value for arithmetic, and back. Written out, because the compiler makes vector instructions of simple loops alone.
inline float real(float value) { return value; }
inline double real(double value) { return value; }
inline float real(c10::BFloat16 value) { return std::bit_cast<float>(static_cast<uint32_t>(value.x) << 16); }

inline void put(float& place, float value) { place = value; }
inline void put(double& place, double value) { place = value; }
inline void put(c10::BFloat16& place, float value) {  // to the nearest, ties to even; what is no number stays none
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  place.x = static_cast<uint16_t>(value != value ? 0x7FC0 : rounded);
}

// Maps by rows.
template <typename T>
struct Matrix {
  T* data;
  int64_t stride, width;
  explicit Matrix(const Tensor& maps)
      : data(static_cast<T*>(maps.data_ptr())), stride(maps.stride(0)), width(maps.size(1)) {
    TORCH_CHECK(maps.dim() == 2 && (maps.stride(1) == 1 || width == 1), "maps must be a matrix of whole rows");
  }
  Matrix(const Tensor& maps, int64_t pixels) : Matrix(maps) {  // so many pixels together as one row
    stride *= pixels;
    width *= pixels;
  }
  T* row(int64_t index) const { return data + index * stride; }
};

template <typename T>
const Real<T>* values_of(const Tensor& vector) {
  TORCH_CHECK(vector.is_contiguous(), "vectors must be contiguous");
  return vector.const_data_ptr<Real<T>>();
}

// How many pixels of narrow maps to take together as one row: loops over a dozen channels are slow.
inline int64_t pixels_in_row(std::initializer_list<Tensor> all_maps) {
  int64_t pixels = 1;
  const int64_t rows = all_maps.begin()->size(0), width = all_maps.begin()->size(1);
  for (const Tensor& maps : all_maps) {
    if (maps.stride(0) != width) return 1;  // rows with gaps between them
  }
  while (2 * pixels * width <= WIDE_ROW && rows % (2 * pixels) == 0) pixels *= 2;
  return pixels;
}

// A vector [channels] for rows of so many pixels.
template <typename T>
std::vector<Real<T>> repeated(const Tensor& vector, int64_t pixels) {
  std::vector<Real<T>> values;
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    values.insert(values.end(), values_of<T>(vector), values_of<T>(vector) + vector.numel());
  }
  return values;
}

// A normalisation folded into x * scale + shift, with the mean that it subtracts.
template <typename T>
struct Norm {
  const Real<T>*scale, *shift, *mean;
  Norm(const Tensor& scale, const Tensor& shift, const Tensor& mean)
      : scale(values_of<T>(scale)), shift(values_of<T>(shift)), mean(values_of<T>(mean)) {}
  using Values = std::vector<Real<T>>;
  Norm(const Values& scale, const Values& shift, const Values& mean)
      : scale(scale.data()), shift(shift.data()), mean(mean.data()) {}
};

// Calls step(c) for the next BLOCK channels if there are so many; the first that is left.
template <int64_t BLOCK, typename Step>
inline int64_t for_block(int64_t first, int64_t width, const Step step) {
  if (first + BLOCK > width) return first;
#pragma omp simd
  for (int64_t c = 0; c < BLOCK; ++c) step(first + c);
  return first + BLOCK;
}

// Calls step(c) for all channels of a row: blocks of known length become whole vectors, where one loop over 60 channels
// would end in a dozen single ones. `simd` because nothing that is written is also read under another name.
template <typename Step>
inline void for_channels(int64_t width, const Step step) {
  int64_t first = width / LONG_VECTOR * LONG_VECTOR;
#pragma omp simd
  for (int64_t c = 0; c < first; ++c) step(c);
  first = for_block<LONG_VECTOR / 2>(first, width, step);
  first = for_block<LONG_VECTOR / 4>(first, width, step);
  first = for_block<LONG_VECTOR / 8>(first, width, step);
  for (; first < width; ++first) step(first);
}

template <typename T, typename R>
void sum_row(const T* x, R* sum, int64_t width) {
  for_channels(width, [=](int64_t c) { sum[c] += real(x[c]); });
}

template <typename T, typename R>
void square_row(const T* x, const R* mean, R* squares, int64_t width) {
  for_channels(width, [=](int64_t c) { squares[c] += (real(x[c]) - mean[c]) * (real(x[c]) - mean[c]); });
}

// ---- Threads, tiles and sums.

// Calls `work` with the type of the maps.
template <typename Work>
void for_type(const Tensor& maps, const Work& work) {
  switch (maps.scalar_type()) {
    case at::kFloat: return work.template operator()<float>();
    case at::kDouble: return work.template operator()<double>();
    case at::kBFloat16: return work.template operator()<c10::BFloat16>();
    default: TORCH_CHECK(false, "maps are ", maps.scalar_type(), "; expected float, double or bfloat16");
  }
}

// Calls work(thread, first row, number of rows) for tiles that cover all rows. Which rows a thread has depends on the
// number of threads alone, so that sums by thread are the same each time.
template <typename Work>
void for_tiles(int64_t num_rows, int64_t tile, const Work& work) {
  const bool inference = c10::InferenceMode::is_enabled();
  at::parallel_for(0, num_rows, tile, [&](int64_t begin, int64_t end) {
    const c10::InferenceMode as_the_caller(inference);  // a thread of a pool has its own mind about these two
    const at::AutoDispatchBelowAutograd no_gradients;
    for (int64_t first = begin; first < end; first += tile) {
      work(at::get_thread_num(), first, std::min(tile, end - first));
    }
  });
}

template <typename T>
Tensor empty_vector(const Tensor& maps, int64_t width) {
  return at::empty({width}, maps.options().dtype(c10::CppTypeToScalarType<Real<T>>::value));
}

// Sums over all rows: short ones in the maps' own precision, which each thread adds up in double.
struct Sums {
  int64_t width;
  std::vector<double> by_thread;
  explicit Sums(int64_t width) : width(width), by_thread(at::get_num_threads() * width, 0.0) {}

  template <typename T>
  void add(int64_t thread, const T* of_tile) {
    double* sums = by_thread.data() + thread * width;
    for (int64_t c = 0; c < width; ++c) sums[c] += real(of_tile[c]);
  }

  // [channels]; rows of several pixels have several values for each.
  template <typename T>
  Tensor total(const Tensor& maps, int64_t channels) const {
    Tensor total = empty_vector<T>(maps, channels);
    auto* values = total.data_ptr<Real<T>>();
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0;
      for (int64_t place = c; place < static_cast<int64_t>(by_thread.size()); place += channels) sum += by_thread[place];
      values[c] = static_cast<Real<T>>(sum);
    }
    return total;
  }
};

// Mean and variance of all rows: of tiles in the maps' own precision, joined in double as Chan, Golub and LeVeque
// 1979 do, so that no digit is lost where a mean is much larger than the deviation.
struct Moments {
  int64_t width;
  std::vector<double> number, mean, squares;
  explicit Moments(int64_t width)
      : width(width),
        number(at::get_num_threads(), 0.0),
        mean(at::get_num_threads() * width, 0.0),
        squares(at::get_num_threads() * width, 0.0) {}

  template <typename R>
  static void join(double number, double* mean, double* squares, double other_number, const R* other_mean,
                   const R* other_squares, int64_t width) {
    const double share = other_number / (number + other_number);
    for (int64_t c = 0; c < width; ++c) {
      const double difference = other_mean[c] - mean[c];
      mean[c] += difference * share;
      squares[c] += other_squares[c] + difference * difference * share * number;
    }
  }

  template <typename T>
  void add(int64_t thread, const T* first, int64_t stride, int64_t rows) {
    std::vector<Real<T>> mean_of_tile(width, 0), squares_of_tile(width, 0);
    for (int64_t r = 0; r < rows; ++r) sum_row(first + r * stride, mean_of_tile.data(), width);
    for (auto& value : mean_of_tile) value /= static_cast<Real<T>>(rows);
    for (int64_t r = 0; r < rows; ++r) {
      square_row(first + r * stride, mean_of_tile.data(), squares_of_tile.data(), width);
    }
    join(number[thread], mean.data() + thread * width, squares.data() + thread * width, static_cast<double>(rows),
         mean_of_tile.data(), squares_of_tile.data(), width);
    number[thread] += static_cast<double>(rows);
  }

  // Both [channels]; rows of several pixels have several of each, which are joined too.
  template <typename T>
  std::tuple<Tensor, Tensor> mean_and_variance(const Tensor& maps, int64_t channels) {
    double together = number[0];
    for (int64_t place = channels; place < static_cast<int64_t>(mean.size()); place += channels) {
      const double others = number[place / width];
      if (others == 0) continue;
      join(together, mean.data(), squares.data(), others, mean.data() + place, squares.data() + place, channels);
      together += others;
    }
    Tensor means = empty_vector<T>(maps, channels), variances = empty_vector<T>(maps, channels);
    for (int64_t c = 0; c < channels; ++c) {
      means.data_ptr<Real<T>>()[c] = static_cast<Real<T>>(mean[c]);
      variances.data_ptr<Real<T>>()[c] = static_cast<Real<T>>(squares[c] / together);
    }
    return {means, variances};
  }
};

inline std::tuple<Tensor, Tensor> moments(const Tensor& maps) {
  std::tuple<Tensor, Tensor> found;
  for_type(maps, [&]<typename T>() {
    const int64_t pixels = pixels_in_row({maps});
    const Matrix<T> x(maps, pixels);
    Moments moments(x.width);
    for_tiles(maps.size(0) / pixels, SHORT_TILE, [&](int64_t thread, int64_t first, int64_t rows) {
      moments.add<T>(thread, x.row(first), x.stride, rows);
    });
    found = moments.mean_and_variance<T>(maps, maps.size(1));
  });
  return found;
}

}  // namespace
