{{- /* Restricted Pod Security, and a read-only root file system. */}}
{{- define "steersman.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "steersman.podSecurity" -}}
{{- if .Values.podSecurityContext -}}
{{ toYaml .Values.podSecurityContext }}
{{- else -}}
runAsNonRoot: true
runAsUser: {{ ternary 2000 10001 (eq .Values.accelerator.type "gpu") }}
runAsGroup: 0
fsGroup: 0
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}
{{- end }}

{{- define "steersman.databaseEnv" -}}
- name: STEERSMAN_HOME
  value: /var/lib/steersman
{{- if eq .Values.database.type "postgresql" }}
- name: STEERSMAN_DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ include "steersman.databaseSecret" . }}
      key: {{ ternary "url" .Values.database.secretKey (empty .Values.database.existingSecret) }}
{{- end }}
{{- end }}

{{- define "steersman.env" -}}
- name: HOME
  value: /home/steersman
- name: TMPDIR
  value: /tmp
- name: HF_HOME
  value: /models/huggingface
- name: VLLM_CACHE_ROOT
  value: /models/vllm
# Half of the series on /metrics are otherwise times at which the others were made.
- name: PROMETHEUS_DISABLE_CREATED_SERIES
  value: "true"
{{ include "steersman.databaseEnv" . }}
{{- with .Values.model.hubToken }}
{{- if .existingSecret }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ .existingSecret }}
      key: {{ .key }}
{{- end }}
{{- end }}
{{- if .Values.multinode.enabled }}
- name: VLLM_HOST_IP
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
{{- with .Values.multinode.networkInterface }}
- name: NCCL_SOCKET_IFNAME
  value: {{ . | quote }}
- name: GLOO_SOCKET_IFNAME
  value: {{ . | quote }}
{{- end }}
{{- end }}
{{- with .Values.server.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "steersman.args" -}}
- serve
{{- with .root.Values }}
{{- with .model.id }}
- {{ . | quote }}
{{- end }}
{{- with .model.servedName }}
- --served-model-name
- {{ . | quote }}
{{- end }}
- --port
- {{ .server.port | quote }}
- --shutdown-timeout
- {{ .drain.timeoutSeconds | quote }}
- --disable-access-log-for-endpoints
- /health,/metrics
{{- if eq .accelerator.type "gpu" }}
- --tensor-parallel-size
- {{ .accelerator.count | quote }}
{{- end }}
- --accounts
- {{ .server.accounts | quote }}
- --interactions
- {{ .server.interactions | quote }}
{{- with .server.behaviors }}
- --behaviors
- {{ join "," . | quote }}
{{- end }}
{{- if .server.redact }}
- --redact
- /etc/steersman/redact.txt
{{- end }}
{{- with .server.allowedMediaDomains }}
- --allowed-media-domains
{{- range . }}
- {{ . | quote }}
{{- end }}
{{- end }}
{{- with .monitoring.otlpEndpoint }}
- --otlp-traces-endpoint
- {{ . | quote }}
{{- end }}
{{- if .multinode.enabled }}
- --pipeline-parallel-size
- {{ .multinode.size | quote }}
- --nnodes
- $(LWS_GROUP_SIZE)
- --node-rank
- {{ ternary "$(LWS_WORKER_INDEX)" "0" (eq $.role "worker") | quote }}
- --master-addr
- $(LWS_LEADER_ADDRESS)
- --distributed-executor-backend
- mp
{{- if eq $.role "worker" }}
- --headless
{{- end }}
{{- end }}
{{- range .server.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- define "steersman.mounts" -}}
- name: home
  mountPath: /var/lib/steersman
- name: models
  mountPath: /models
- name: user
  mountPath: /home/steersman
- name: tmp
  mountPath: /tmp
- name: shm
  mountPath: /dev/shm
{{- if .Values.server.redact }}
- name: config
  mountPath: /etc/steersman
  readOnly: true
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* `role` worker has an empty home: the leader alone opens the database. */}}
{{- define "steersman.volumes" -}}
{{- with .root.Values }}
- name: home
{{- if and .persistence.enabled (ne $.role "worker") }}
  persistentVolumeClaim:
    claimName: {{ .persistence.existingClaim | default (printf "%s-home" (include "steersman.fullname" $.root)) }}
{{- else }}
  emptyDir: {}
{{- end }}
- name: models
{{- if eq .modelCache.type "claim" }}
  persistentVolumeClaim:
    claimName: {{ .modelCache.existingClaim | default (printf "%s-models" (include "steersman.fullname" $.root)) }}
{{- else if eq .modelCache.type "ephemeral" }}
  ephemeral:
    volumeClaimTemplate:
      spec:
        accessModes: [ReadWriteOnce]
        {{- with .modelCache.storageClass }}
        storageClassName: {{ . | quote }}
        {{- end }}
        resources:
          requests:
            storage: {{ .modelCache.size | quote }}
{{- else }}
  emptyDir:
    sizeLimit: {{ .modelCache.size | quote }}
{{- end }}
- name: user
  emptyDir: {}
- name: tmp
  emptyDir:
    sizeLimit: {{ .tmp.size | quote }}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ .shm.size | quote }}
{{- if .server.redact }}
- name: config
  configMap:
    name: {{ include "steersman.fullname" $.root }}
{{- end }}
{{- with .extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "steersman.resources" -}}
{{- $resources := deepCopy .Values.resources -}}
{{- if eq .Values.accelerator.type "gpu" -}}
{{- $resources = merge $resources (dict "limits" dict "requests" dict) -}}
{{- $_ := set $resources.limits .Values.accelerator.resource (.Values.accelerator.count | toString) -}}
{{- end -}}
{{ toYaml $resources }}
{{- end }}

{{- define "steersman.migration" -}}
name: migrate
image: {{ include "steersman.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
# Listing keys opens the database, which brings its schema up to date under a lock; the list says nothing secret.
command: [steersman, keys, list]
env:
  - name: HOME
    value: /tmp
  {{- include "steersman.databaseEnv" . | nindent 2 }}
resources:
  requests:
    cpu: 100m
    memory: 256Mi
  limits:
    memory: 1Gi
securityContext:
  {{- include "steersman.containerSecurity" . | nindent 2 }}
volumeMounts:
  - name: home
    mountPath: /var/lib/steersman
  - name: tmp
    mountPath: /tmp
{{- end }}

{{- /* One engine pod: `root`, and `role` engine, leader or worker. */}}
{{- define "steersman.pod" -}}
metadata:
  labels:
    {{- include "steersman.labels" (dict "root" .root "component" (ternary "worker" "engine" (eq .role "worker"))) | nindent 4 }}
    {{- with .root.Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    checksum/config: {{ include (print .root.Template.BasePath "/configmap.yaml") .root | sha256sum }}
    checksum/secret: {{ include (print .root.Template.BasePath "/secret.yaml") .root | sha256sum }}
    {{- if and .root.Values.monitoring.annotations (ne .role "worker") }}
    prometheus.io/scrape: "true"
    prometheus.io/path: /metrics
    prometheus.io/port: {{ .root.Values.server.port | quote }}
    {{- end }}
    {{- with .root.Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "steersman.serviceAccount" .root }}
  automountServiceAccountToken: false
  # A Service named vllm would otherwise set VLLM_PORT to a URL.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ include "steersman.gracePeriod" .root }}
  securityContext:
    {{- include "steersman.podSecurity" .root | nindent 4 }}
  {{- with .root.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .root.Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .root.Values.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with .root.Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .root.Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .root.Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
    {{- if .root.Values.topologySpreadConstraints }}
    {{- toYaml .root.Values.topologySpreadConstraints | nindent 4 }}
    {{- else }}
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "steersman.selector" (dict "root" .root "component" (ternary "worker" "engine" (eq .role "worker"))) | nindent 10 }}
    {{- end }}
  {{- $link := not .root.Values.model.id }}
  {{- $migrate := and (eq .root.Values.database.migrations "init") (ne .role "worker") }}
  {{- if or $link $migrate }}
  initContainers:
    {{- if $link }}
    # The image's embedded model, where the server looks for it: the volume hides what the image has there.
    - name: model
      image: {{ include "steersman.image" .root }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      command:
        - sh
        - -c
        - mkdir -p /var/lib/steersman/models && ln -sfn /opt/steersman/models/* /var/lib/steersman/models/
      resources:
        requests:
          cpu: 10m
          memory: 16Mi
        limits:
          memory: 64Mi
      securityContext:
        {{- include "steersman.containerSecurity" .root | nindent 8 }}
      volumeMounts:
        - name: home
          mountPath: /var/lib/steersman
    {{- end }}
    {{- if $migrate }}
    - {{ include "steersman.migration" .root | nindent 6 | trim }}
    {{- end }}
  {{- end }}
  containers:
    - name: steersman
      image: {{ include "steersman.image" .root }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      args:
        {{- include "steersman.args" . | trim | nindent 8 }}
      env:
        {{- include "steersman.env" .root | nindent 8 }}
      {{- with .root.Values.server.extraEnvFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      resources:
        {{- include "steersman.resources" .root | nindent 8 }}
      securityContext:
        {{- include "steersman.containerSecurity" .root | nindent 8 }}
      {{- if ne .role "worker" }}
      ports:
        - name: http
          containerPort: {{ .root.Values.server.port }}
      {{- with .root.Values.probes }}
      startupProbe:
        httpGet:
          path: {{ .path }}
          port: http
        periodSeconds: 10
        timeoutSeconds: {{ .timeoutSeconds }}
        failureThreshold: {{ .startupFailureThreshold }}
      readinessProbe:
        httpGet:
          path: {{ .path }}
          port: http
        periodSeconds: {{ .readinessPeriodSeconds }}
        timeoutSeconds: {{ .timeoutSeconds }}
        failureThreshold: 2
      # Not asked while a pod terminates, so that a drain is not cut short.
      livenessProbe:
        httpGet:
          path: {{ .path }}
          port: http
        periodSeconds: {{ .livenessPeriodSeconds }}
        timeoutSeconds: {{ .timeoutSeconds }}
        failureThreshold: {{ .livenessFailureThreshold }}
      {{- end }}
      {{- end }}
      {{- if .root.Values.drain.preStopSeconds }}
      lifecycle:
        preStop:
          sleep:
            seconds: {{ .root.Values.drain.preStopSeconds }}
      {{- end }}
      volumeMounts:
        {{- include "steersman.mounts" .root | nindent 8 }}
  volumes:
    {{- include "steersman.volumes" . | trim | nindent 4 }}
{{- end }}
