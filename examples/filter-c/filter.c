/* A filter: standard input, in upper case and with its lines numbered, to standard output; a report into a file.
 * Arguments: the file to write the report to; then, if wanted, a file whose lines are left out of the output.
 * Built by: examples/build filter-c */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LONGEST_LINE = 4096, MOST_LINES = 256, WRONG_USAGE = 2 };

static char *left_out[MOST_LINES];
static int left_out_count;

static FILE *opened(const char *path, const char *mode) {
    FILE *file = fopen(path, mode);
    if (file == NULL) {
        fprintf(stderr, "filter: cannot open %s: %s\n", path, strerror(errno));
        exit(1);
    }
    return file;
}

static void read_left_out(const char *path) {
    char line[LONGEST_LINE];
    FILE *file = opened(path, "r");
    while (left_out_count < MOST_LINES && fgets(line, sizeof line, file) != NULL) {
        char *copy = strdup(line);
        if (copy == NULL)
            abort();
        left_out[left_out_count++] = copy;
    }
    fclose(file);
}

static int is_left_out(const char *line) {
    for (int i = 0; i < left_out_count; i++)
        if (strcmp(line, left_out[i]) == 0)
            return 1;
    return 0;
}

int main(int argc, char **argv) {
    char line[LONGEST_LINE];
    int lines = 0, shown = 0;
    if (argc < 2 || argc > 3) {
        fprintf(stderr, "usage: filter REPORT [LEFT-OUT] <INPUT\n");
        return WRONG_USAGE;
    }
    if (argc == 3)
        read_left_out(argv[2]);
    while (fgets(line, sizeof line, stdin) != NULL) {
        lines++;
        if (is_left_out(line))
            continue;
        for (char *at = line; *at != '\0'; at++)
            *at = (char)toupper((unsigned char)*at);
        printf("%d %s", ++shown, line);
    }
    FILE *report = opened(argv[1], "w");
    fprintf(report, "%d lines read, %d left out\n", lines, lines - shown);
    if (fclose(report) != 0) {
        fprintf(stderr, "filter: cannot write %s: %s\n", argv[1], strerror(errno));
        return 1;
    }
    return 0;
}
