// decode.cu: attention of single rows over long caches, at the speed of memory.
//   grid: a block a multiprocessor: with two, registers would be short
//
// For each row and unit (a KV head and up to QUERIES of its query heads) there are its packed tiles of TILE tokens, then
// its tiles of 16 rows in full precision. Rows and units are shared as plan.cu chooses: whole ones by teams of 1 to 12
// warps, parts of them by blocks, or pieces of the line of all of them by blocks. A span is what a team has of one row and
// unit. Its warps take the span's tiles in turn, WIDE_TILE tokens at a time where all is packed, and its rows in turns behind
// those, though each does its rows first; each has a softmax of its own, and copies packed tiles STAGES ahead, beyond the end of
// a span. A span that is not a whole row and unit leaves a partial result; the block that arrives last adds them up. Nothing
// depends on which one that is.
//
// Tiles are the 16-row operand of mma.m16n8k16, the queries its 8 columns (docs/cuda.md has the budget):
//   S^T = K Q^T    on raw codes, q folded with the group's scales; zeros are one row more, the same for all tokens
//   O^T = V^T P^T  on raw codes, p folded with the tokens' scales; zeros are further rows, one a group, and ones add
//                  up p
// p is kept within f16 by a reference that follows the largest logit only when it must.
#include "copies.cuh"
#include "plan.cuh"
#include "sums.cuh"
#include "tiles.cuh"

// A team's i-th span.
__device__ void run_span(const DecodeParams& p, Shared& sh, const Team& team, u32 i, Copies& copies) {
    const Span& span = sh.spans[team.first * SPANS + i];
    const AttendParams& a = p.attend;
    const Cache& c = a.cache;
    u32 ratio = a.n_heads / c.n_kv_heads, first = span.unit / c.n_kv_heads * QUERIES;
    u32 n = min(QUERIES, ratio - first), head = span.head * ratio + first;
    Queries q;
    q.fetch(team, a.q + span.row * a.q_stride + (u64)head * HEAD_DIM, n);
    q.load(a, sh, team, head, n);
    State s;
    s.clear();
    for (u32 tile = span.row_tile + team.behind(span.row_turn); tile < span.row_tile_end; tile += team.warps) {
        use_rows(c, span, tile, q, s);
    }
    unsettle(s);
    Walk walk;
    walk.enter(span, team);
    // By themselves, so that what seldom happens takes none of their registers.
    while (walk.wide()) {
        use_tile<true, WIDE_TILE>(c, span, copies.wait(), walk.token, q, s);
        copies.release(c, sh);
        walk.next_wide(span, team);
    }
    for (; walk.more(); walk.next(team)) {
        use_tile<false, TILE>(c, span, copies.wait(), walk.token, q, s);
        copies.release(c, sh);
    }
    settle(s);
    Act* out = a.out + span.row * a.out_stride + (u64)head * HEAD_DIM;
    float* partial = p.partials + (u64)span.slot * PARTIAL;
    bool whole = span.parts == 1, active = span.extent.active;
    add_warps(sh, team, s, n, [&](u32 query, u32 channel, const Sum& sum) {
        if (whole) {
            emit_quad(out + query * HEAD_DIM + channel, sum.of, active ? sum.total : INFINITY);
        } else {
            write_partial(partial, query, channel, sum);
        }
    });
    if (!whole && arrive(p, sh, span)) {
        add_partials(p, sh, span, n, out);
    }
}

extern "C" __global__ void __launch_bounds__(DECODE_BLOCK, 1) decode(const __grid_constant__ DecodeParams p) {
    // What is settled, plan and pages, is asked for before the launch before is done.
    if (!p.settled) {
        wait_for_launch_before();
    }
    Shared& sh = *(Shared*)dynamic_shared();
    Share share = p.plan[blockIdx.x].share;
    Team team(share.team);
    Copies copies(team);
    for (u32 round = 0, more = share.parts != 0 || blockIdx.x < share.blocks; more; ++round) {
        plan(p, sh, share, team, round);
        copies.restart(p.attend.cache, sh);
        wait_for_launch_before();
        for (u32 i = 0; i < sh.n_spans[team.first]; ++i) {
            run_span(p, sh, team, i, copies);
        }
        more = sh.more[team.first];
    }
    wait_for_launch_before();
}
