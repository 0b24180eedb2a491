// Threads that go through one program side by side and share its loops.
//
// A task for every loop of a decoder would be started and waited for some 300 times a token. Here
// threads are started once; each runs the whole program, takes part in every loop and goes on when
// all turns of it are done. Nobody waits for a thread that is not there: one that comes late finds
// loops done that others finished without it. One that has begun a turn is waited for.

#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include <immintrin.h>

#include <tbb/parallel_for.h>
#include <tbb/partitioner.h>
#include <tbb/task_arena.h>

namespace qwen_edge {

// What the members of a team share: which turns of its loops are taken, and how many are done.
class Team {
public:
    Team(int members, int loops)
        : members_(members), stride_((members + 1 + kLine - 1) / kLine * kLine), counts_(static_cast<size_t>(stride_) * loops + kLine) {}

    int members() const { return members_; }

    // Throws what the program threw within a loop.
    void rethrow() const {
        if (error_) std::rethrow_exception(error_);
    }

private:
    friend class Member;
    static constexpr int kLine = 64 / sizeof(std::atomic<int>);

    // Of a loop: turns done; then of each member's part of them how many are taken.
    std::atomic<int>* counts_of(int loop) {
        const auto line = (reinterpret_cast<uintptr_t>(counts_.data()) + 63) / 64 * 64;
        return reinterpret_cast<std::atomic<int>*>(line) + static_cast<size_t>(loop) * stride_;
    }

    bool has_loop(int loop) const { return static_cast<size_t>(loop + 1) * stride_ + kLine <= counts_.size(); }

    void fail() {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (!error_) error_ = std::current_exception();
        has_failed_ = true;
    }

    int members_, stride_;
    std::vector<std::atomic<int>> counts_;
    std::atomic<bool> has_failed_{false};
    std::mutex mutex_;
    std::exception_ptr error_;
};

// One thread's way through the program. All members make the same calls in the same order.
class Member {
public:
    Member(Team& team, int number) : team_(team), number_(number) {}

    int number() const { return number_; }
    int members() const { return team_.members(); }

    // Memory that this member reads in a later loop: asked for while it waits in others.
    void expect(const uint8_t* begin, const uint8_t* end) {
        ahead_ = begin;
        ahead_end_ = end - begin < kAheadBytes ? end : begin + kAheadBytes;
    }

    // Calls function(begin, end) for parts of [0, count), each turn once by one of the members, and
    // returns when all are done. Everybody begins with an own, contiguous part, as memory likes it;
    // who is done takes from others'. After an exception in it loops do nothing any more.
    template <typename Function>
    void share(int count, const Function& function) {
        if (!team_.has_loop(loop_)) std::terminate();  // the caller counted wrongly
        std::atomic<int>* const done = team_.counts_of(loop_++);
        int mine = 0;
        try {
            for (int i = 0; i < team_.members(); ++i) {
                const int part = (number_ + i) % team_.members();
                const int first = start_of(part, count), size = start_of(part + 1, count) - first;
                std::atomic<int>& taken = done[1 + part];
                int begin = taken.load(std::memory_order_relaxed);
                while (begin < size && !team_.has_failed_.load(std::memory_order_relaxed)) {
                    // Less and less, so that all are done at the same time.
                    const int turns = (size - begin + kPortions - 1) / kPortions;
                    if (!taken.compare_exchange_weak(begin, begin + turns, std::memory_order_relaxed)) continue;
                    function(first + begin, first + begin + turns);
                    mine += turns;
                    begin = taken.load(std::memory_order_relaxed);
                }
            }
        } catch (...) {
            team_.fail();
        }
        if (mine) done->fetch_add(mine, std::memory_order_acq_rel);
        wait_for(*done, count);
    }

private:
    static constexpr int kPortions = 4;
    static constexpr int kSpins = 4000;  // some 50 us, then others may have the processor
    static constexpr int kAheadBytes = 256 * 1024;  // they stay in the second cache

    int start_of(int part, int count) const {
        return static_cast<int>(static_cast<int64_t>(count) * part / team_.members());
    }

    void wait_for(const std::atomic<int>& done, int count) {
        for (int spins = 0; done.load(std::memory_order_acquire) < count && !team_.has_failed_.load(std::memory_order_relaxed);) {
            if (ahead_ < ahead_end_) {
                for (int i = 0; i < 8; ++i, ahead_ += 64) _mm_prefetch(reinterpret_cast<const char*>(ahead_), _MM_HINT_T1);
            } else if (++spins < kSpins) {
                _mm_pause();
            } else {
                std::this_thread::yield();
            }
        }
    }

    Team& team_;
    int number_, loop_ = 0;
    const uint8_t *ahead_ = nullptr, *ahead_end_ = nullptr;
};

// Runs program(Member&) on all threads that the caller may use, with at most `loops` calls of
// `share`; returns when all have gone through.
template <typename Program>
void run_team(int loops, const Program& program) {
    Team team(tbb::this_task_arena::max_concurrency(), loops);
    // Isolated: a thread that waits here must not begin other work, whose memory is the same.
    tbb::this_task_arena::isolate([&] {
        tbb::parallel_for(
            0, team.members(), 1,
            [&](int number) {
                Member member(team, number);
                program(member);
            },
            tbb::simple_partitioner());
    });
    team.rethrow();
}

}  // namespace qwen_edge
