// fused_rnn._C: what is not an op.
#include <algorithm>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "../cpu/hooks.h"
#include "../cuda/plan.h"
#include "stream.h"

namespace py = pybind11;
using namespace fused_rnn;

namespace {

template <class F>
using Array = py::array_t<F, py::array::c_style>;

template <class F>
Array<F> map(void (*f)(const F*, F*, int64_t), const Array<F>& x) {
    Array<F> y(x.request().shape);
    f(x.data(), y.mutable_data(), x.size());
    return y;
}

py::dict division(int64_t directions, int64_t rows, int64_t panels, int64_t weight_bytes, int64_t steps,
                  int64_t flops_per_step, int threads, int64_t exchanged, int64_t layers, int all) {
    const cpu::Division d =
        hooks::divide_loop({directions, rows, panels, weight_bytes, steps, flops_per_step, exchanged}, layers, threads,
                           std::max(threads, all));
    py::dict out;
    out["threads"] = d.threads;
    out["directions"] = d.directions;
    out["row_parts"] = d.row_parts;
    out["unit_parts"] = d.unit_parts;
    out["layers"] = d.layers;
    return out;
}

// A run is (now, wanted, duration, wall, worked, slept), times in ns.
std::vector<int> threads_in_crowd(const std::vector<std::array<int64_t, 6>>& runs) {
    std::vector<hooks::TeamRun> list;
    for (const auto& [now, wanted, duration, wall, worked, slept] : runs)
        list.push_back({now, static_cast<int>(wanted), duration, {wall, worked, slept}});
    return hooks::threads_of(list);
}

py::dict cuda_plan(int64_t cell, bool backward, int64_t T, int64_t B, int64_t D, int64_t H, int64_t P, int element_size,
                   int sms, int shared_per_block, int shared_per_sm, int threads_per_sm, int registers_per_sm,
                   bool cooperative, bool loops, const std::array<int, cuda::kClusterSizes>& clusters, bool tensor,
                   bool rowwise, bool clustered, bool clusters_first) {
    const cuda::LoopShape shape{
        cuda::multiplied_gates(cell), backward, T, B, D, H, P, element_size, tensor, rowwise, clustered};
    cuda::DeviceLimits limits{sms, shared_per_block, shared_per_sm, threads_per_sm, registers_per_sm, cooperative};
    limits.loops = loops;
    limits.clusters_first = clusters_first;
    std::copy(clusters.begin(), clusters.end(), limits.clusters);
    const cuda::Plan p = cuda::plan(shape, limits);
    constexpr const char* kTiles[] = {"few", "batch", "tensor"};
    constexpr const char* kModes[] = {"alone", "cooperative", "steps", "clusters", "products"};
    const bool in_clusters = p.mode == cuda::Mode::kClusters;
    const cuda::Slices& share = in_clusters ? static_cast<const cuda::Slices&>(p.cluster) : p.grid;
    py::dict out;
    out["mode"] = kModes[static_cast<int>(p.mode)];
    if (p.mode == cuda::Mode::kProducts) return out;
    if (!in_clusters) out["tile"] = kTiles[p.tile];
    out["blocks"] = p.blocks;
    out["threads"] = p.threads;
    out["shared_bytes"] = p.shared_bytes;
    out["slices"] = share.slices;
    out["slice_rows"] = share.slice_rows;
    out["parts"] = share.parts;
    out["units"] = p.units;
    if (in_clusters) return out;
    out["chunk"] = p.grid.chunk;
    out["resident"] = p.grid.resident;
    return out;
}

// Addresses come from Tensor.data_ptr(); 0 is none.
const void* readable(intptr_t address) { return reinterpret_cast<const void*>(address); }
void* writable(intptr_t address) { return reinterpret_cast<void*>(address); }

// A layer is I, H, R and the addresses of the weights of a StreamLayer.
std::unique_ptr<Stream> stream(const std::string& dtype, int64_t cell, const std::vector<double>& variant,
                               int64_t batch_size, const std::vector<std::array<int64_t, 13>>& layers) {
    using torch::headeronly::ScalarType;
    const ScalarType type = dtype == "float32"    ? ScalarType::Float
                            : dtype == "float64"  ? ScalarType::Double
                            : dtype == "bfloat16" ? ScalarType::BFloat16
                                                  : ScalarType::Half;
    std::vector<StreamLayer> list;
    for (const auto& l : layers)
        list.push_back({l[0], l[1], l[2], readable(l[3]), readable(l[4]), readable(l[5]), readable(l[6]),
                        readable(l[7]), readable(l[8]), readable(l[9]), readable(l[10]), readable(l[11]),
                        readable(l[12])});
    return make_stream(type, cell, variant, batch_size, list);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    m.doc() = "Build facts, instruction sets and test hooks of fused_rnn; the ops are in torch.ops.fused_rnn.";
    m.def(
        "build_info",
        [] {
            py::dict info;
            info["compiler"] = FUSED_RNN_COMPILER;
            info["torch"] = FUSED_RNN_TORCH_VERSION;
            info["commit"] = FUSED_RNN_COMMIT;
            return info;
        },
        "Compiler, torch version and commit this was built with.");
    m.def("cpu_isa", &hooks::isa, "The instruction set in force: generic, avx2 or avx512.");
    m.def("cpu_isas", &hooks::isas, "All that this machine can run, best last.");
    m.def("force_isa", &hooks::force_isa, py::arg("name"),
          "Makes every later call use one instruction set; '' goes back to the best. Raises ValueError for one "
          "that this machine cannot run.");
    m.def("used_threads", &hooks::used_threads,
          "Whether the calling thread has used torch's thread pool through an op; see ops.py on forking.");
    m.def("divide_loop", &division, py::arg("directions"), py::arg("rows"), py::arg("panels"), py::arg("weight_bytes"),
          py::arg("steps"), py::arg("flops_per_step"), py::arg("threads"), py::arg("exchanged") = 0,
          py::arg("layers") = 1, py::arg("all") = 0,
          "How a time loop of that size, of one layer, is shared among threads; all, where none waits for another.");
    m.def("threads_in_crowd", &threads_in_crowd, py::arg("runs"),
          "The threads that teams would get, one after the other, which then spend that.");
    m.def("cuda_plan", &cuda_plan, py::kw_only(), py::arg("cell"), py::arg("backward"), py::arg("T"), py::arg("B"),
          py::arg("D"), py::arg("H"), py::arg("P"), py::arg("element_size"), py::arg("sms"),
          py::arg("shared_per_block"), py::arg("shared_per_sm"), py::arg("threads_per_sm"), py::arg("registers_per_sm"),
          py::arg("cooperative"), py::arg("loops") = true, py::arg("clusters") = std::array<int, cuda::kClusterSizes>{},
          py::arg("tensor") = false, py::arg("rowwise") = false, py::arg("clustered") = false,
          py::arg("clusters_first") = false,
          "How a time loop of that size would be launched on a GPU that has this; asks for none.");
    using Unlocked = py::call_guard<py::gil_scoped_release>;
    py::class_<Stream>(m, "Stream", "What streaming.py is made of. It trusts every address and size.")
        .def(py::init(&stream), py::arg("dtype"), py::arg("cell"), py::arg("variant"), py::arg("batch_size"),
             py::arg("layers"))
        .def(
            "run", [](Stream& s, intptr_t x, int64_t steps, intptr_t y) { s.run(readable(x), steps, writable(y)); },
            Unlocked(), py::arg("x"), py::arg("steps"), py::arg("y"))
        .def(
            "read_state", [](Stream& s, intptr_t h, intptr_t c) { s.read_state(writable(h), writable(c)); }, Unlocked(),
            py::arg("h"), py::arg("c"))
        .def(
            "write_state", [](Stream& s, intptr_t h, intptr_t c) { s.write_state(readable(h), readable(c)); },
            Unlocked(), py::arg("h"), py::arg("c"))
        .def("clear", py::overload_cast<>(&Stream::clear), Unlocked())
        .def("clear", py::overload_cast<const std::vector<int64_t>&>(&Stream::clear), Unlocked(), py::arg("rows"))
        .def("fork", &Stream::fork, Unlocked(), py::arg("batch_size"));
    m.def("narrow_sigmoid", [](const Array<float>& x) { return map<float>(&hooks::narrow_sigmoid, x); });
    m.def("narrow_tanh", [](const Array<float>& x) { return map<float>(&hooks::narrow_tanh, x); });
    m.def("vector_sigmoid", [](const Array<float>& x) { return map<float>(&hooks::sigmoid, x); });
    m.def("vector_sigmoid", [](const Array<double>& x) { return map<double>(&hooks::sigmoid, x); });
    m.def("vector_tanh", [](const Array<float>& x) { return map<float>(&hooks::tanh, x); });
    m.def("vector_tanh", [](const Array<double>& x) { return map<double>(&hooks::tanh, x); });
}
