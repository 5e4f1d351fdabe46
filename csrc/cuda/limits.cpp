#include "limits.h"

#include <algorithm>
#include <cstdlib>
#include <sstream>
#include <stdexcept>
#include <string>

namespace fused_rnn::cuda {

DeviceLimits lowered(DeviceLimits limits) {
    const char* text = std::getenv("FUSED_RNN_CUDA_LIMITS");
    if (!text || !*text) return limits;
    std::istringstream parts(text);
    for (std::string part; std::getline(parts, part, ',');) {
        const size_t equals = part.find('=');
        const std::string name = part.substr(0, equals);
        int value = 0;
        try {
            value = std::stoi(part.substr(equals == std::string::npos ? part.size() : equals + 1));
        } catch (const std::exception&) {
            throw std::runtime_error(std::string("FUSED_RNN_CUDA_LIMITS: not understood: ") + part);
        }
        if (name == "sms") {
            limits.sms = std::min(limits.sms, value);
        } else if (name == "shared") {
            limits.shared_per_block = std::min(limits.shared_per_block, value);
        } else if (name == "cooperative") {
            limits.cooperative = limits.cooperative && value;
        } else if (name == "clusters") {  // of so many blocks at most
            for (int i = 0; i < kClusterSizes; ++i)
                if (1 << i > value) limits.clusters[i] = 0;
        } else if (name == "loops") {
            limits.loops = limits.loops && value;
        } else {
            throw std::runtime_error(std::string("FUSED_RNN_CUDA_LIMITS: not understood: ") + part);
        }
    }
    return limits;
}

}  // namespace fused_rnn::cuda
