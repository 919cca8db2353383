/* A driver library for tests: one device for each word in FAKE_NVML, each with one peculiarity. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OK 0
#define NOT_SUPPORTED 3
#define TIMEOUT 10
#define GPU_IS_LOST 15
#define MOST 16

typedef struct { char kind[16]; int number; int part; int told; } Device;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { Device *device; unsigned long long type, data; unsigned gi, ci; } Event;
typedef struct { unsigned gpu, memory; } Rates;

static Device devices[MOST], parts[2];
static unsigned count;

static int is(Device *d, const char *kind) { return strcmp(d->kind, kind) == 0; }

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    char *words = strdup(getenv("FAKE_NVML")), *rest = words, *word;
    for (count = 0; (word = strsep(&rest, ",")) && count < MOST; count++) {
        memset(&devices[count], 0, sizeof(Device));
        strncpy(devices[count].kind, word, 15);
        devices[count].number = (int)count;
    }
    free(words);
    for (int i = 0; i < 2; i++) { strcpy(parts[i].kind, "part"); parts[i].number = i; parts[i].part = 1; }
    return OK;
}
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return code == GPU_IS_LOST ? "GPU is lost" : "an error"; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = count; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, Device **d) { *d = &devices[i]; return is(*d, "lost") ? GPU_IS_LOST : OK; }
int nvmlDeviceGetUUID(Device *d, char *text, unsigned n) {
    snprintf(text, n, d->part ? "MIG-part-%d" : "GPU-%d", d->number);
    return OK;
}
int nvmlDeviceGetName(Device *d, char *text, unsigned n) { (void)d; snprintf(text, n, "Fake 9000"); return OK; }
int nvmlDeviceGetMemoryInfo(Device *d, Memory *m) {
    m->total = (d->part ? 10ull : 80ull) << 30;
    m->used = 1ull << 30;
    m->free = m->total - m->used;
    return OK;
}
int nvmlDeviceGetUtilizationRates(Device *d, Rates *r) { if (d->part) return NOT_SUPPORTED; r->gpu = 37; r->memory = 5; return OK; }
int nvmlDeviceGetTemperature(Device *d, int sensor, unsigned *t) { (void)sensor; *t = is(d, "hot") ? 101 : 55; return OK; }
int nvmlDeviceGetTemperatureThreshold(Device *d, int which, unsigned *t) { (void)d; (void)which; *t = 100; return OK; }
int nvmlDeviceGetTotalEccErrors(Device *d, int type, int counter, unsigned long long *n) {
    (void)type; (void)counter;
    if (is(d, "plain")) return NOT_SUPPORTED;
    *n = is(d, "ecc") ? 3 : 0;
    return OK;
}
int nvmlDeviceGetRemappedRows(Device *d, unsigned *c, unsigned *u, unsigned *pending, unsigned *failed) {
    *c = *u = 0; *pending = is(d, "pending"); *failed = is(d, "remap");
    return OK;
}
int nvmlDeviceGetRetiredPagesPendingStatus(Device *d, unsigned *pending) { *pending = is(d, "pages"); return OK; }
int nvmlDeviceGetMigMode(Device *d, unsigned *now, unsigned *next) { *now = *next = is(d, "mig"); return OK; }
int nvmlDeviceGetMaxMigDeviceCount(Device *d, unsigned *n) { (void)d; *n = 3; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(Device *d, unsigned i, Device **part) {
    (void)d;
    if (i >= 2) return 6; /* not found: the third place is free */
    *part = &parts[i];
    return OK;
}
int nvmlEventSetCreate(void **set) { *set = devices; return OK; }
int nvmlEventSetFree(void *set) { (void)set; return OK; }
int nvmlDeviceRegisterEvents(Device *d, unsigned long long types, void *set) { (void)d; (void)types; (void)set; return OK; }
int nvmlEventSetWait_v2(void *set, Event *e, unsigned timeout) {
    (void)set; (void)timeout;
    for (unsigned i = 0; i < count; i++)
        if ((is(&devices[i], "xid") || is(&devices[i], "fault31")) && !devices[i].told) {
            devices[i].told = 1;
            e->device = &devices[i];
            e->type = 8;
            e->data = is(&devices[i], "xid") ? 79 : 31;
            return OK;
        }
    return TIMEOUT;
}
