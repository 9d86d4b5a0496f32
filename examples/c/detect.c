/* An image in, its boxes out, in plain C (C89 and later). Build it with libdnc_runtime (examples/README.md):
 *
 *     gcc -std=c89 detect.c -Iruntime/include -L. -ldnc_runtime -Wl,-rpath,. -o detect
 *     ./detect yolov4-tiny.engine dog.ppm
 */
#include <dnc.h>
#include <stdio.h>
#include <stdlib.h>

/* The next number of a PPM's header; 0 where there is none. */
static unsigned long number(FILE* file)
{
    unsigned long value = 0;
    int c = getc(file);
    while (c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '#') {
        if (c == '#') while (c != '\n' && c != EOF) c = getc(file);
        c = getc(file);
    }
    for (; c >= '0' && c <= '9' && value < 100000; c = getc(file)) value = value * 10 + (unsigned long)(c - '0');
    return value;
}

/* Reads a binary PPM of 8 bits; NULL if it is none. */
static unsigned char* read_ppm(const char* path, dnc_image* image)
{
    FILE* file = fopen(path, "rb");
    unsigned char* pixels = NULL;
    if (file == NULL) return NULL;
    if (getc(file) == 'P' && getc(file) == '6') {
        image->width = number(file);
        image->height = number(file);
        if (number(file) == 255 && image->width > 0 && image->width <= 65536 && image->height <= 65536) {
            image->bytes = image->width * image->height * 3;
            pixels = malloc(image->bytes > 0 ? image->bytes : 1);
            if (pixels != NULL && fread(pixels, 1, image->bytes, file) != image->bytes) {
                free(pixels);
                pixels = NULL;
            }
        }
    }
    fclose(file);
    image->data = pixels;
    return pixels;
}

int main(int argc, char** argv)
{
    dnc_engine* engine = NULL;
    dnc_results* results = NULL;
    dnc_image image = DNC_IMAGE_INIT;
    dnc_detection box = DNC_DETECTION_INIT;
    unsigned char* pixels;
    size_t i;
    int failed;
    if (argc < 3 || argc > 4) {
        fprintf(stderr, "usage: %s ENGINE IMAGE.ppm [CONFIDENCE]\n", argv[0]);
        return 2;
    }
    pixels = read_ppm(argv[2], &image);
    if (pixels == NULL) {
        fprintf(stderr, "%s: no binary PPM of 8 bits\n", argv[2]);
        return 1;
    }
    failed = dnc_open(argv[1], NULL, &engine) != DNC_OK ||
             dnc_detect(engine, &image, 1, argc > 3 ? (float)atof(argv[3]) : 0.25f, 0.45f, &results) != DNC_OK;
    if (failed) fprintf(stderr, "%s\n", dnc_last_error());
    for (i = 0; !failed && dnc_results_detection(results, 0, i, &box) == DNC_OK; i++)
        printf("%s %g %d %d %d %d\n", box.label, box.confidence, box.left, box.top, box.right, box.bottom);
    dnc_results_free(results);
    dnc_close(engine);
    free(pixels);
    return failed;
}
