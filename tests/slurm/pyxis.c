/* Stands in for NVIDIA's pyxis: takes its --container-* options and shows each task what it got as PYXIS_<OPTION>.
   It starts no container. */
#include <ctype.h>
#include <slurm/spank.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

SPANK_PLUGIN(pyxis, 1);

static char *names[] = {"container-image", "container-mounts", "container-workdir", "container-env"};
enum { COUNT = sizeof(names) / sizeof(*names) };
static char *values[COUNT];

static int keep(int index, const char *argument, int remote) {
  values[index] = strdup(argument);
  return ESPANK_SUCCESS;
}

int slurm_spank_init(spank_t spank, int argc, char **argv) {
  for (int i = 0; i < COUNT; i++) {
    struct spank_option option = {names[i], "VALUE", "taken, shown and not acted on", 1, i, keep};
    if (spank_option_register(spank, &option) != ESPANK_SUCCESS) return ESPANK_ERROR;
  }
  return ESPANK_SUCCESS;
}

int slurm_spank_task_init(spank_t spank, int argc, char **argv) {
  for (int i = 0; i < COUNT; i++) {
    char name[64];
    if (!values[i]) continue;
    snprintf(name, sizeof name, "PYXIS_%s", names[i]);
    for (char *c = name; *c; c++) *c = *c == '-' ? '_' : toupper(*c);
    spank_setenv(spank, name, values[i], 1);
  }
  return ESPANK_SUCCESS;
}
