// An NVRTC that compiles kernels for the emulated driver, by the compiler of EMULATOR_CXX (c++). Built as
// libnvrtc.so.13.
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <regex>
#include <sstream>
#include <string>

#include <unistd.h>

namespace {

struct Program {
    std::filesystem::path dir;
    std::string source, log, image;
};

std::string read(const std::filesystem::path& path) {
    std::ostringstream text;
    text << std::ifstream(path, std::ios::binary).rdbuf();
    return text.str();
}

// A function for each kernel that takes its only argument by address.
std::string entries(const std::string& source) {
    std::regex kernel(R"(__global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\((?:const __grid_constant__ )?(\w+) \w+\))");
    std::string text;
    for (std::sregex_iterator at(source.begin(), source.end(), kernel), end; at != end; ++at) {
        std::string name = (*at)[1], type = (*at)[2];
        text += "extern \"C\" void emulator_run_" + name + "(void* p) { " + name + "(*(" + type + "*)p); }\n";
        text += "extern \"C\" unsigned emulator_size_" + name + "() { return sizeof(" + type + "); }\n";
    }
    return text;
}

}  // namespace

extern "C" {

int nvrtcVersion(int* major, int* minor) { return *major = 13, *minor = 0, 0; }
const char* nvrtcGetErrorString(int) { return "the compiler failed"; }

int nvrtcCreateProgram(void** program, const char* source, const char*, int headers, const char* const* texts,
                       const char* const* names) {
    static std::atomic<int> number;
    Program* p = new Program{std::filesystem::temp_directory_path() /
                                 ("kivi-emulator-" + std::to_string(getpid()) + "-" + std::to_string(number++)),
                             source};
    std::filesystem::create_directories(p->dir);
    std::ofstream(p->dir / "kernels.cu") << source;
    for (int i = 0; i < headers; ++i) {
        bool ours = !strcmp(names[i], "ptx.cuh");  // what no compiler for a CPU takes
        std::ofstream(p->dir / names[i]) << (ours ? "#pragma once\n#include <emulator_ptx.h>\n" : texts[i]);
    }
    std::ofstream(p->dir / "main.cpp") << "#include \"kernels.cu\"\n" << entries(source);
    *program = p;
    return 0;
}

int nvrtcCompileProgram(void* program, int n, const char* const* options) {
    Program* p = (Program*)program;
    const char* compiler = getenv("EMULATOR_CXX");
    std::string dir = p->dir.string(), command = compiler ? compiler : "c++";
    command += " -O1 -w -std=c++17 -march=native -ffp-contract=off -fPIC -shared -I" + dir;
    for (int i = 0; i < n; ++i) {
        bool known = !strncmp(options[i], "-D", 2) || !strncmp(options[i], "-I", 2);
        command += known ? std::string(" '") + options[i] + "'" : "";
    }
    command += " -o " + dir + "/kernels.so " + dir + "/main.cpp -l:libcuda.so.1 -L\"$CUDA_HOME/lib64\" > " + dir + "/log 2>&1";
    int status = std::system(command.c_str());
    p->log = read(p->dir / "log");
    std::string library = status ? "" : read(p->dir / "kernels.so");
    uint64_t size = library.size();
    p->image = "EMULATED" + std::string((char*)&size, 8) + library;
    std::filesystem::remove_all(p->dir);
    return status ? 6 : 0;
}

int nvrtcGetProgramLogSize(void* program, size_t* size) { return *size = ((Program*)program)->log.size() + 1, 0; }
int nvrtcGetProgramLog(void* program, char* log) { return strcpy(log, ((Program*)program)->log.c_str()), 0; }
int nvrtcGetCUBINSize(void* program, size_t* size) { return *size = ((Program*)program)->image.size(), 0; }
int nvrtcGetCUBIN(void* program, char* to) {
    const std::string& image = ((Program*)program)->image;
    return memcpy(to, image.data(), image.size()), 0;
}
int nvrtcDestroyProgram(void** program) {
    delete (Program*)*program;
    *program = nullptr;
    return 0;
}
}
