/* jbpf's first example: counts its calls in a map, sends the count, and echoes what it is sent. */
#include "../codelet.h"

CODELET_MAP("array", counter, "4", "4", 1);
CODELET_OUTPUT(output, "8", 64);
CODELET_INPUT(input, "4", 64);

struct message {
    uint32_t count, echoed;
};

CODELET(void *context)
{
    struct message message = {0, 0};
    uint32_t key = 0;
    (void)context;
    counter_lookup(&key, &message.count);
    message.count++;
    counter_update(&key, &message.count);
    input_receive(&message.echoed, sizeof(message.echoed));
    return output_send(&message, sizeof(message));
}
