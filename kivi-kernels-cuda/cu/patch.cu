// patch.cu: words that came from the host in one copy, or were chosen on the device, to where they belong; a block a part.
#include "kivi.cuh"

struct PatchPart {
    u32* dst;
    const u32* src;
    u32 count;
    u32 chosen;  // whether src is what argmax wrote: u32 max, no token, becomes 0
};
KIVI_CHECK_SIZE(PatchPart);

struct PatchParams {
    const PatchPart* parts;
};
KIVI_CHECK_SIZE(PatchParams);

extern "C" __global__ void patch(PatchParams p) {
    wait_for_launch_before();
    PatchPart part = p.parts[blockIdx.x];
    for (u32 i = threadIdx.x; i < part.count; i += BLOCK) {
        u32 word = part.src[i];
        part.dst[i] = part.chosen && word == ~0u ? 0 : word;
    }
}
