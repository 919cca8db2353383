/* A driver library for tests. It plays the file that FAKE_NVML names, read again whenever devices are counted:
 *
 *   driver version=550.54 cuda=12040             or: driver gone
 *   device uuid=GPU-0 name=Fake_9000 total=80 used=1 heat=55 limit=100 busy=37 watts=120 most=350 ecc=0
 *          remap=0 pending=0 pages=0 throttle=0 mig=0 lost=0 plain=0        (sizes in GiB)
 *   part uuid=MIG-0 of=GPU-0 total=10 used=1
 *   process gpu=GPU-0 pid=17 used=4              (used=-1: not available; graphics=1: no compute)
 *   event gpu=GPU-0 xid=79 number=1              (told once for each number)
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OK 0
#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define INSUFFICIENT_SIZE 7
#define DRIVER_NOT_LOADED 9
#define TIMEOUT 10
#define GPU_IS_LOST 15
#define MOST 32
#define GIB (1ull << 30)

typedef struct { char uuid[64], name[64], of[64]; double total, used;
    int heat, limit, busy, watts, most, ecc, remap, pending, pages, throttle, mig, lost, plain; } Device;
typedef struct { char gpu[64]; unsigned pid; double used; int graphics; } Process;
typedef struct { char gpu[64]; int xid, number; } Event;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { Device *device; unsigned long long type, data; unsigned gi, ci; } EventData;
typedef struct { unsigned gpu, memory; } Rates;
typedef struct { unsigned pid; unsigned long long used; unsigned gi, ci; } ProcessInfo;
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } Pci;

static Device devices[MOST], parts[MOST];
static Process processes[MOST];
static Event events[MOST];
static int n_devices, n_parts, n_processes, n_events, told, gone;
static char version[64];
static int cuda;

static double value(const char *line, const char *key, double otherwise) {
    char wanted[32];
    snprintf(wanted, sizeof wanted, " %s=", key);
    const char *at = strstr(line, wanted);
    return at ? atof(at + strlen(wanted)) : otherwise;
}

static void text(const char *line, const char *key, char *into, const char *otherwise) {
    char wanted[32];
    snprintf(wanted, sizeof wanted, " %s=", key);
    const char *at = strstr(line, wanted);
    snprintf(into, 64, "%s", at ? at + strlen(wanted) : otherwise);
    into[strcspn(into, " \n")] = 0;
}

static int read_script(void) {
    char line[512];
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    if (!file) return DRIVER_NOT_LOADED;
    n_devices = n_parts = n_processes = n_events = gone = 0;
    while (fgets(line, sizeof line, file)) {
        if (!strncmp(line, "driver", 6)) {
            gone = strstr(line, " gone") != NULL;
            text(line, "version", version, "550.54");
            cuda = (int)value(line, "cuda", 12040);
        } else if (!strncmp(line, "device", 6) || !strncmp(line, "part", 4)) {
            Device *d = line[0] == 'd' ? &devices[n_devices++] : &parts[n_parts++];
            text(line, "uuid", d->uuid, "GPU-x");
            text(line, "name", d->name, "Fake_9000");
            text(line, "of", d->of, "");
            d->total = value(line, "total", 80);
            d->used = value(line, "used", 1);
            d->heat = (int)value(line, "heat", 55);
            d->limit = (int)value(line, "limit", 100);
            d->busy = (int)value(line, "busy", 37);
            d->watts = (int)value(line, "watts", 120);
            d->most = (int)value(line, "most", 350);
            d->ecc = (int)value(line, "ecc", 0);
            d->remap = (int)value(line, "remap", 0);
            d->pending = (int)value(line, "pending", 0);
            d->pages = (int)value(line, "pages", 0);
            d->throttle = (int)value(line, "throttle", 0);
            d->mig = (int)value(line, "mig", 0);
            d->lost = (int)value(line, "lost", 0);
            d->plain = (int)value(line, "plain", 0);
        } else if (!strncmp(line, "process", 7)) {
            Process *p = &processes[n_processes++];
            text(line, "gpu", p->gpu, "");
            p->pid = (unsigned)value(line, "pid", 1);
            p->used = value(line, "used", 1);
            p->graphics = (int)value(line, "graphics", 0);
        } else if (!strncmp(line, "event", 5)) {
            Event *e = &events[n_events++];
            text(line, "gpu", e->gpu, "");
            e->xid = (int)value(line, "xid", 79);
            e->number = (int)value(line, "number", 1);
        }
    }
    fclose(file);
    return gone ? DRIVER_NOT_LOADED : OK;
}

static Device *find(Device *among, int n, const char *uuid) {
    for (int i = 0; i < n; i++) if (!strcmp(among[i].uuid, uuid)) return &among[i];
    return NULL;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; return read_script(); }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) {
    return code == GPU_IS_LOST ? "GPU is lost" : code == DRIVER_NOT_LOADED ? "Driver Not Loaded" : "an error";
}
int nvmlSystemGetDriverVersion(char *into, unsigned n) { snprintf(into, n, "%s", version); return OK; }
int nvmlSystemGetCudaDriverVersion_v2(int *into) { *into = cuda; return OK; }
int nvmlDeviceGetCount_v2(unsigned *n) { int r = read_script(); *n = (unsigned)n_devices; return r; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, Device **d) { *d = &devices[i]; return (*d)->lost ? GPU_IS_LOST : OK; }
int nvmlDeviceGetUUID(Device *d, char *into, unsigned n) { snprintf(into, n, "%s", d->uuid); return OK; }
int nvmlDeviceGetName(Device *d, char *into, unsigned n) { snprintf(into, n, "%s", d->name); return OK; }
int nvmlDeviceGetPciInfo_v3(Device *d, Pci *pci) {
    memset(pci, 0, sizeof *pci);
    snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:%02X:00.0", (unsigned)(d - devices) + 1);
    return OK;
}
int nvmlDeviceGetMemoryInfo(Device *d, Memory *m) {
    m->total = (unsigned long long)(d->total * GIB);
    m->used = (unsigned long long)(d->used * GIB);
    m->free = m->total - m->used;
    return OK;
}
int nvmlDeviceGetUtilizationRates(Device *d, Rates *r) {
    if (d->of[0] || d->plain) return NOT_SUPPORTED;
    r->gpu = (unsigned)d->busy; r->memory = 5;
    return OK;
}
int nvmlDeviceGetPowerUsage(Device *d, unsigned *mw) { if (d->plain) return NOT_SUPPORTED; *mw = (unsigned)d->watts * 1000; return OK; }
int nvmlDeviceGetEnforcedPowerLimit(Device *d, unsigned *mw) { if (d->plain) return NOT_SUPPORTED; *mw = (unsigned)d->most * 1000; return OK; }
int nvmlDeviceGetTemperature(Device *d, int sensor, unsigned *t) { (void)sensor; *t = (unsigned)d->heat; return OK; }
int nvmlDeviceGetTemperatureThreshold(Device *d, int which, unsigned *t) { (void)which; *t = (unsigned)d->limit; return OK; }
int nvmlDeviceGetCurrentClocksThrottleReasons(Device *d, unsigned long long *r) {
    if (d->plain) return NOT_SUPPORTED;
    *r = (unsigned long long)d->throttle;
    return OK;
}
int nvmlDeviceGetTotalEccErrors(Device *d, int type, int counter, unsigned long long *n) {
    (void)type; (void)counter;
    if (d->plain) return NOT_SUPPORTED;
    *n = (unsigned long long)d->ecc;
    return OK;
}
int nvmlDeviceGetRemappedRows(Device *d, unsigned *c, unsigned *u, unsigned *pending, unsigned *failed) {
    *c = *u = 0; *pending = (unsigned)d->pending; *failed = (unsigned)d->remap;
    return OK;
}
int nvmlDeviceGetRetiredPagesPendingStatus(Device *d, unsigned *pending) { *pending = (unsigned)d->pages; return OK; }
int nvmlDeviceGetMigMode(Device *d, unsigned *now, unsigned *next) { *now = *next = (unsigned)d->mig; return OK; }
int nvmlDeviceGetMaxMigDeviceCount(Device *d, unsigned *n) { (void)d; *n = 7; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(Device *d, unsigned i, Device **part) {
    for (int k = 0; k < n_parts; k++)
        if (!strcmp(parts[k].of, d->uuid) && i-- == 0) { *part = &parts[k]; return OK; }
    return NOT_FOUND; /* the place is free */
}
static int listed(Device *d, unsigned *n, ProcessInfo *into, int graphics) {
    unsigned room = *n, found = 0;
    for (int i = 0; i < n_processes; i++) {
        if (strcmp(processes[i].gpu, d->uuid) || processes[i].graphics != graphics) continue;
        if (into && found < room) {
            into[found].pid = processes[i].pid;
            into[found].used = processes[i].used < 0 ? ~0ull : (unsigned long long)(processes[i].used * GIB);
            into[found].gi = into[found].ci = 0;
        }
        found++;
    }
    *n = found;
    return found > room || (found && !into) ? INSUFFICIENT_SIZE : OK;
}
int nvmlDeviceGetComputeRunningProcesses_v3(Device *d, unsigned *n, ProcessInfo *into) { return listed(d, n, into, 0); }
int nvmlDeviceGetGraphicsRunningProcesses_v3(Device *d, unsigned *n, ProcessInfo *into) { return listed(d, n, into, 1); }
int nvmlEventSetCreate(void **set) { *set = devices; return OK; }
int nvmlEventSetFree(void *set) { (void)set; return OK; }
int nvmlDeviceRegisterEvents(Device *d, unsigned long long types, void *set) { (void)d; (void)types; (void)set; return OK; }
int nvmlEventSetWait_v2(void *set, EventData *e, unsigned timeout) {
    (void)set; (void)timeout;
    for (int i = 0; i < n_events; i++)
        if (events[i].number > told && (e->device = find(devices, n_devices, events[i].gpu))) {
            told = events[i].number;
            e->type = 8;
            e->data = (unsigned long long)events[i].xid;
            return OK;
        }
    return TIMEOUT;
}
/* for a test that begins anew in the same process */
void fake_forget(void) { told = 0; }
