// Fails in the way that its first argument names. VALUE, NAME and PORT differ from run to run. Built with
// AddressSanitizer and UndefinedBehaviorSanitizer as asan_*, ubsan_*, and without for the rest.
#include <cassert>
#include <cstdlib>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

static int value() { return atoi(getenv("VALUE")); }
static std::string name() { return getenv("NAME"); }

struct Quota : std::runtime_error { using std::runtime_error::runtime_error; };

__attribute__((noinline)) int use_after_free(int *p) { return p[1]; }
__attribute__((noinline)) int use_elsewhere(int *p) { return p[1]; }
__attribute__((noinline)) void overflow(char *p, int n) { memset(p, 7, n); }
__attribute__((noinline)) int add(int a, int b) { return a + b; }
__attribute__((noinline)) int shift(int a, int b) { return a << b; }
__attribute__((noinline)) void check(int n) { assert(n < 0 && "must be negative"); }
__attribute__((noinline)) void check_other(int n) { assert(n == -7); }
__attribute__((noinline)) void smash(int n) { char small[8]; overflow(small, 64 + n % 8); asm volatile("" : : "r"(small) : "memory"); }

struct Base { Base() { call(); } void call() { run(); } virtual void run() = 0; };
struct Child : Base { void run() override {} };

int main(int, char **argv) {
    std::string what = argv[1];
    int *p = new int[4];
    char *volatile m = (char *)malloc(24);
    if (what == "asan_uaf") { delete[] p; return use_after_free(p); }
    if (what == "asan_uaf_elsewhere") { delete[] p; return use_elsewhere(p); }
    if (what == "asan_overflow") { overflow(m, 25 + value() % 8); }
    if (what == "asan_double") { free(m); free(m); }
    if (what == "asan_leak") { m = (char *)malloc(1000 + value()); m = nullptr; delete[] p; return 0; }
    if (what == "asan_null") { *(volatile int *)(long)(value() % 64) = 1; }
    if (what == "ubsan_add") { return add(2147483647, value()) == 0; }
    if (what == "ubsan_shift") { return shift(1, 32 + value() % 100) == 0; }
    if (what == "free_invalid") { free(m + 16); }
    if (what == "double_free") { free(m); free(m); }
    if (what == "corrupt") { memset(m, 0xff, 64); free(malloc(2000)); free(malloc(90000)); free(m); }
    if (what == "smash") { smash(value()); }
    if (what == "assert") { check(value()); }
    if (what == "assert_other") { check_other(value()); }
    if (what == "throw") { throw Quota(name() + " used " + std::to_string(value()) + " bytes"); }
    if (what == "throw_range") { return std::vector<int>(3).at(value() + 3); }
    if (what == "throw_map") { return std::map<int, int>().at(value()); }
    if (what == "throw_int") { throw value(); }
    if (what == "pure") { Child child; }
    if (what == "segv") { *(volatile int *)(long)(value() % 64) = 1; }
    if (what == "abort") { abort(); }
    return 0;
}
