/* What a codelet in C is made of: its entry point, maps, channels and helpers. docs/how-to/codelets.md shows their use.
 *
 *   clang --target=wasm32 -O2 -nostdlib -Wl,--no-entry -Wl,--import-memory -Wl,-z,stack-size=4096 -o x.wasm x.c
 */
#ifndef CODELET_H
#define CODELET_H

typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef int int32_t;
typedef unsigned long long uint64_t;
typedef long long int64_t;
typedef __SIZE_TYPE__ size_t;

#define CODELET_TEXT_(x) #x
#define CODELET_TEXT(x) CODELET_TEXT_(x)
#define CODELET_IMPORT(module, name) __attribute__((import_module(module), import_name(name)))

/* `long long codelet_main(struct CONTEXT *context)`, and for a hook with data also `void *data, size_t size`. */
#define CODELET __attribute__((export_name("codelet_main"))) int64_t codelet_main

/* A map: kind is array, hashmap, per-thread-array or per-thread-hashmap; the key of an array is a uint32_t.
 * NAME_lookup: 1 and a copy of the value, or 0. NAME_update: 0, or -1 where there is no room. NAME_delete: 0 or -1. */
#define CODELET_MAP(kind, name, key, value, entries)                                                                   \
    CODELET_IMPORT("map:" kind ":" key ":" value ":" CODELET_TEXT(entries), #name ".lookup")                           \
    int name##_lookup(const void *key_at, void *value_at);                                                             \
    CODELET_IMPORT("map:" kind ":" key ":" value ":" CODELET_TEXT(entries), #name ".update")                           \
    int name##_update(const void *key_at, const void *value_at);                                                       \
    CODELET_IMPORT("map:" kind ":" key ":" value ":" CODELET_TEXT(entries), #name ".delete")                           \
    int name##_delete(const void *key_at)

/* NAME_send: 0, -1 where the channel is full, which is counted, -2 where the message is too long. */
#define CODELET_OUTPUT(name, bytes, messages)                                                                          \
    CODELET_IMPORT("output:" bytes ":" CODELET_TEXT(messages), #name ".send")                                          \
    int name##_send(const void *message, size_t size)

/* NAME_receive: the message's size, -1 where there is none, -2 where it is longer than `capacity`. */
#define CODELET_INPUT(name, bytes, messages)                                                                           \
    CODELET_IMPORT("input:" bytes ":" CODELET_TEXT(messages), #name ".receive")                                        \
    int name##_receive(void *message, size_t capacity)

/* A function that the application offers: CODELET_HELPER(set_queue) int set_queue(uint32_t queue); */
#define CODELET_HELPER(name) CODELET_IMPORT("helper", #name)

/* What every application offers. */
CODELET_HELPER(time_ns) int64_t time_ns(void);
CODELET_HELPER(random) int64_t codelet_random(void);
CODELET_HELPER(hash) int32_t codelet_hash(const void *data, size_t size);
CODELET_HELPER(print) void codelet_print(const void *text, size_t size);

/* The context of the hook `report_stats`: the counts of one hook since it was declared. */
struct hook_statistics {
    char hook_name[32]; /* zeros behind a shorter one, none behind a longer one */
    uint64_t calls, faults, overruns;
    uint64_t drops; /* messages that its codelets' full output channels did not take */
    uint64_t median_ns, p99_ns;
    uint32_t number, codelets; /* the hook's place; how many codelets are on it */
    uint64_t times[49]; /* times[n]: timed calls of less than 2^n ns */
};

#endif
