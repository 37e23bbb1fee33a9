/* On the forwarder's egress: how long each packet waited and how long its queue was. Sends one sample a hundred packets. */
#include "../codelet.h"

struct egress { /* forwarder.Egress */
    uint32_t queue, length;
    uint64_t waited_ns;
};

struct totals {
    uint64_t packets, waited_ns, longest_ns, lengths;
};

struct sample { /* forwarder.Sample */
    uint32_t queue, packets;
    uint64_t mean_ns, longest_ns;
    uint32_t mean_length, unused;
};

CODELET_MAP("array", totals, "4", "32", 8);
CODELET_OUTPUT(samples, "32", 256);

#define EVERY 100

CODELET(struct egress *packet)
{
    static const struct totals none;
    struct totals totals = {0, 0, 0, 0};
    if (!totals_lookup(&packet->queue, &totals))
        return -1;
    totals.packets++;
    totals.waited_ns += packet->waited_ns;
    totals.lengths += packet->length;
    if (packet->waited_ns > totals.longest_ns)
        totals.longest_ns = packet->waited_ns;
    if (totals.packets == EVERY) {
        struct sample sample = {packet->queue, EVERY, totals.waited_ns / EVERY, totals.longest_ns,
                                (uint32_t)(totals.lengths / EVERY), 0};
        samples_send(&sample, sizeof(sample));
        totals = none;
    }
    totals_update(&packet->queue, &totals);
    return 0;
}
