/* A C program as any other: it greets, says what it can see of its surroundings, and ends with 0.
 * Built by: examples/build hello-c */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

int main(int argc, char **argv) {
    (void)argc;
    (void)argv;
    printf("Hello from C, inside a keep!\n");

    time_t now = time(NULL);
    struct tm utc;
    char text[32];
    if (gmtime_r(&now, &utc) != NULL && strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &utc) > 0)
        printf("It is %s UTC.\n", text);

    FILE *file = fopen("/etc/passwd", "r");
    if (file == NULL) {
        printf("I cannot open /etc/passwd: %s.\n", strerror(errno));
        return 0;
    }
    fclose(file);
    fprintf(stderr, "I could open /etc/passwd, which no keep should let me.\n");
    return 1;
}
